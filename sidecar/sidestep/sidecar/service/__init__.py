"""The daemon as a process among others: its lock, its signals, its service manager."""

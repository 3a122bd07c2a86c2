"""The journal: the one queue, a SQLite file that holds what somebody has not passed."""

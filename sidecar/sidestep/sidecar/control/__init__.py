"""What the command line asks, and the answers."""

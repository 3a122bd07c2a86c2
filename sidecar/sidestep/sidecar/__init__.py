"""The daemon beside the trainer, and the command line `sidestep`."""

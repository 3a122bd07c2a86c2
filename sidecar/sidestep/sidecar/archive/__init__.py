"""The archive, read back."""

"""The copy of a run's files in object storage."""

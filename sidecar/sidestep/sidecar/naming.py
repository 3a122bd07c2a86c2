"""The run's name as a folder: `safe_name`, which clients need too, where the daemon looks for it."""

from sidestep.proto.naming import safe_name

__all__ = ["safe_name"]

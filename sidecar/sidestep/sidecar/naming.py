"""The run's name as a folder: `safe_name`, of proto, since clients say where files lie too."""

from sidestep.proto.naming import safe_name

__all__ = ["safe_name"]

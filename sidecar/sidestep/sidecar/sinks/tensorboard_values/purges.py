"""The mark of a restart: TensorBoard hides what it has of this step and later ones."""

from __future__ import annotations

from typing import Any

from sidestep.proto import Value

from .rendered import Rendered, new_event


def purge(value: Value) -> Rendered:
    """A session starts at this step; before that, as torch does it, the version once more."""
    version: Any = new_event(value)
    version.file_version = "brain.Event:2"
    start: Any = new_event(value)
    start.session_log.status = start.session_log.START
    return Rendered([("", bytes(event.SerializeToString())) for event in (version, start)])

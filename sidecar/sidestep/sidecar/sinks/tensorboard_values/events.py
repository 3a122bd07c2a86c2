"""Events that were made in the trainer, as they are."""

from __future__ import annotations

from typing import Any

from sidestep.proto import Value

from ..rendering.arrays import only_array


def event(value: Value, event: Any) -> None:
    """A whole event, or the summary of one; its step and time are the value's own."""
    data = only_array(value).tobytes()
    step, wall_time = event.step, event.wall_time
    part = value.info.get("part")
    if part == "summary":
        event.summary.ParseFromString(data)
    elif part == "event":
        event.ParseFromString(data)
        event.step, event.wall_time = step, wall_time
    else:
        raise ValueError(f"an event is sent whole, or its summary, not {part!r:.80}")

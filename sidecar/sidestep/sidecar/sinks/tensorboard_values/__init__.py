"""Values that are no plain numbers to TensorBoard events: one function for each kind.

A renderer fills in an Event that already has its wall time and step. To add a kind, write one and
name it in `RENDERERS`. It may raise anything: the sink skips and counts a value that cannot be
shown. What is shown equals what `torch.utils.tensorboard` would have written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from tensorboard.compat.proto import event_pb2

from sidestep.proto import Value

from ...points import wall_times_s
from .histograms import histogram
from .images import image
from .text import text

# Its members are made at import: no type checker sees them.
_EVENTS: Final[Any] = event_pb2

Renderer = Callable[[Value, Any], None]
"""Fills in the Event that shows a value."""

RENDERERS: Final[Mapping[str, Renderer]] = {
    "histogram": histogram,
    "image": image,
    "text": text,
}
"""What shows which kind of value."""

IGNORED: Final = frozenset({"moments"})
"""Kinds that are for the derivers alone."""


def event_of(value: Value) -> bytes:
    """The serialized Event that shows `value`.

    Raises:
        Exception: nothing here shows values of this kind, or this one is not as its kind asks.
    """
    render = RENDERERS.get(value.kind)
    if render is None:
        raise ValueError(f"TensorBoard has nothing for values of kind {value.kind!r:.80}")
    event = _EVENTS.Event(wall_time=wall_times_s(value.time_ns), step=value.step)
    render(value, event)
    return bytes(event.SerializeToString())

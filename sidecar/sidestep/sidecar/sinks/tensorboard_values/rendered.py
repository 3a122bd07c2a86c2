"""What a value becomes: events in the run's folder or below it, and files beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tensorboard.compat.proto import event_pb2

from sidestep.proto import Value

from ...rows.points import wall_times_s

# Its members are made at import: no type checker sees them.
_EVENTS: Final[Any] = event_pb2


@dataclass(frozen=True, slots=True)
class SideFile:
    """A file beside the events. Writing it once more must leave it as it is.

    Attributes:
        path: names below the run's folder, the file's own name last. None may be a link.
        content: makes its bytes, piece by piece, of what the file holds already; it is handed
            None when there is no file, or `reads` says that it does not ask.
        reads: whether `content` asks for what is there.
    """

    path: tuple[str, ...]
    content: Callable[[bytes | None], Iterable[bytes]]
    reads: bool = False


@dataclass(frozen=True, slots=True)
class Rendered:
    """All that is to be written of one value.

    Attributes:
        events: serialized Events, each with the folder below the run's that it goes to ("" for
            the run's own; names may be divided by "/", and are made safe by the sink).
        files: files beside them, in the order in which they are to be written.
    """

    events: Sequence[tuple[str, bytes]] = ()
    files: Sequence[SideFile] = ()


def new_event(value: Value, *, stepless: bool = False) -> Any:
    """An Event with the wall time and, unless it is `stepless`, the step of `value`."""
    event = _EVENTS.Event(wall_time=wall_times_s(value.time_ns))
    if not stepless:
        event.step = value.step
    return event

"""Reads the end of a run's event files as TensorBoard would: points, purges, torn ends.

A file can have gigabytes, and what is of interest is at its end. Records cannot be read backwards,
but one can be found again: its length is followed by a checksum of the length.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, cast

import google_crc32c

from ...sinks.event_file import CRC, HEAD, masked

WINDOW_BYTES: Final = 2 << 20
_MOST_PARSED_BYTES: Final = 1 << 16
"""Longer events hold pictures, not points."""

_EVENTS: Final = re.compile(r".*tfevents.*")
_START: Final = 1
"""`SessionLog.START`: hides what came before, from its step on."""

Point = tuple[int, float, float]
"""Step, wall time in seconds, value."""


@dataclass(slots=True)
class Tail:
    """The end of what a folder's event files hold.

    Attributes:
        path: the newest file; "" when there is none.
        nbytes: its size.
        changed_s: when it was last written, in seconds since the epoch.
        torn_at: if it ends inside a record, where that begins; else None.
        damaged_at: where a record is that is not what was written; TensorBoard stops there.
        windowed: whether only its end was read.
        curves: the points that TensorBoard shows, by tag, in their order.
        hidden: points that a later attempt hides.
        hidden_from: the lowest step from which on such an attempt hides.
        back: by tag, how often a step was followed by a lower one, and the last such pair.
        late_s: the largest jump back of the wall time between two events of the trainer's.
        newest_s: the newest wall time of any event.
    """

    path: str = ""
    nbytes: int = 0
    changed_s: float = 0.0
    torn_at: int | None = None
    damaged_at: int | None = None
    windowed: bool = False
    curves: dict[str, list[Point]] = field(default_factory=dict[str, list[Point]])
    hidden: int = 0
    hidden_from: int | None = None
    back: dict[str, tuple[int, int, int]] = field(default_factory=dict[str, tuple[int, int, int]])
    late_s: float = 0.0
    newest_s: float = 0.0

    @property
    def own(self) -> dict[str, list[Point]]:
        """The trainer's curves, without those of the sidecar and the machine."""
        return {tag: points for tag, points in self.curves.items() if is_own(tag)}


def is_own(tag: str) -> bool:
    """Whether a tag is the trainer's, not the sidecar's or the machine's."""
    return not tag.startswith(("system/", "sidestep/"))


def event_files(folder: str) -> list[str]:
    """The event files right in a folder, in the order in which TensorBoard reads them."""
    try:
        names = sorted(name for name in os.listdir(folder) if _EVENTS.fullmatch(name))
    except OSError:
        return []
    paths = [os.path.join(folder, name) for name in names]
    return [path for path in paths if os.path.isfile(path)]  # a FIFO would be waited for


def read_tail(folder: str, window_bytes: int = WINDOW_BYTES) -> Tail:
    """Read the newest event file of a folder from `window_bytes` before its end on.

    Raises:
        OSError: it is there and cannot be read.
    """
    files = event_files(folder)
    tail = Tail()
    if not files:
        return tail
    tail.path = files[-1]
    room = window_bytes
    chosen: list[tuple[str, int]] = []  # what fits of the newest files, and from where on
    for path in reversed(files):
        size = os.path.getsize(path)
        chosen.append((path, max(0, size - room)))
        room -= size
        if room <= 0:
            break
    tail.windowed = len(chosen) < len(files) or chosen[-1][1] > 0
    for path, start in reversed(chosen):
        _read(path, start, tail)
    return tail


def _read(path: str, start: int, tail: Tail) -> None:
    from tensorboard.compat.proto import event_pb2

    protocol = cast("Any", event_pb2)

    with open(path, "rb", buffering=0) as file:
        about = os.fstat(file.fileno())
        data = os.pread(file.fileno(), about.st_size - start, start)
    tail.nbytes, tail.changed_s = about.st_size, about.st_mtime
    tail.torn_at = tail.damaged_at = None
    at = 0 if start == 0 else _resync(data)
    for body in _bodies(data, at, start, tail):
        if 0 < len(body) <= _MOST_PARSED_BYTES:
            try:
                event = protocol.Event.FromString(bytes(body))
            except Exception:  # noqa: BLE001, S112 - protobuf's own; its checksum was right
                continue
            _take(event, tail)


def _bodies(data: bytes, at: int, start: int, tail: Tail) -> Iterator[memoryview]:
    view, crc32c = memoryview(data), google_crc32c.value
    while at < len(data):
        if len(data) - at < HEAD.size:
            tail.torn_at = start + at
            return
        length, check = HEAD.unpack_from(data, at)
        if check != masked(crc32c(data[at : at + 8])):
            tail.damaged_at = start + at
            return
        stop = at + HEAD.size + length
        if stop + CRC.size > len(data):
            tail.torn_at = start + at
            return
        body = view[at + HEAD.size : stop]
        if CRC.unpack_from(data, stop)[0] != masked(crc32c(bytes(body))):
            tail.damaged_at = start + at
            return
        yield body
        at = stop + CRC.size


def _resync(data: bytes) -> int:
    """Where the first record begins in a piece that begins anywhere."""
    at = -1
    # A length below 4 GiB ends in four zeros; few other places do and have the right checksum.
    while (at := data.find(b"\0\0\0\0", at + 1)) >= 0:
        head = at - 4
        if head >= 0 and head + HEAD.size <= len(data):
            length, check = HEAD.unpack_from(data, head)
            if length < 1 << 31 and check == masked(google_crc32c.value(data[head : head + 8])):
                return head
    return len(data)


def _take(event: Any, tail: Tail) -> None:
    tail.newest_s = max(tail.newest_s, event.wall_time)
    if event.HasField("session_log") and event.session_log.status == _START:
        _purge(int(event.step), tail)
        return
    if not event.HasField("summary"):
        return
    step, wall_time = int(event.step), float(event.wall_time)
    for value in event.summary.value:
        number = _number(value)
        if number is None:
            continue
        points = tail.curves.setdefault(str(value.tag), [])
        if points and is_own(value.tag):
            last_step, last_time, _ = points[-1]
            if step < last_step:
                tail.back[value.tag] = (tail.back.get(value.tag, (0, 0, 0))[0] + 1, last_step, step)
            tail.late_s = max(tail.late_s, last_time - wall_time)
        points.append((step, wall_time, number))


def _number(value: Any) -> float | None:
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return float(value.simple_value)
    if kind == "tensor" and len(value.tensor.float_val) == 1:
        return float(value.tensor.float_val[0])
    return None


def _purge(step: int, tail: Tail) -> None:
    kept: dict[str, list[Point]] = defaultdict(list)
    for tag, points in tail.curves.items():
        shown = [point for point in points if point[0] < step]
        if is_own(tag):
            tail.hidden += len(points) - len(shown)
        if shown:
            kept[tag] = shown
    tail.curves = dict(kept)
    tail.hidden_from = step if tail.hidden_from is None else min(step, tail.hidden_from)
    tail.back.clear()

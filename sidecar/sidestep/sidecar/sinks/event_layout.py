"""The bytes of an Event under one tuple of tags, laid out once for all of its rows.

All rows of one tag tuple are alike but for the wall time, the step, the numbers and the checksum,
and only the step, a varint, changes where things lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

import numpy as np
import numpy.typing as npt

from .event_file import CRC, HEAD, record_head

WALL_TIME_KEY: Final = b"\x09"  # Event.wall_time, field 1, double
STEP_KEY: Final = b"\x10"  # Event.step, field 2, varint
_SUMMARY_KEY: Final = b"\x2a"  # Event.summary, field 5
_VALUE_KEY: Final = b"\x0a"  # Summary.value, field 1
_TAG_KEY: Final = b"\x0a"  # Summary.Value.tag, field 1
_SIMPLE_VALUE_KEY: Final = b"\x15"  # Summary.Value.simple_value, field 2, float
WALL_TIME: Final = Struct("<d")

WALL_TIME_AT: Final = HEAD.size + len(WALL_TIME_KEY)
"""Where the wall time is in a record."""

STEP_AT: Final = WALL_TIME_AT + WALL_TIME.size + len(STEP_KEY)
"""Where the step is in a record, unless it is 0."""

_VARINT_STARTS: Final = np.array([1] + [1 << 7 * i for i in range(1, 10)], np.uint64)
"""The smallest number of each length as a varint; 0, the default, is left out altogether."""

_LAYOUT_BYTES: Final = 1500
_TAG_BYTES: Final = 16
_COPIES: Final = 3
"""What a layout takes in memory: of the summary so many copies, of each tag so many bytes."""

_MAX_CACHED_BYTES: Final = 16 << 20
"""Of all layouts together: 6,000 of 20 tags."""


@dataclass(frozen=True, slots=True)
class Template:
    """One record with steps of a fixed number of bytes, zeros where something is filled in.

    Attributes:
        record: the record.
        step_bytes: how many bytes the step has (0: the step is 0 and left out).
        first: where the summary begins; `Layout.places` says where in it the numbers are.
    """

    record: bytes
    step_bytes: int
    first: int


class Layout:
    """The bytes of an Event under one tuple of tags.

    Attributes:
        summary: the summary's bytes, zeros in the place of numbers.
        places: where in it the numbers are, shape (tags,), 4 bytes each.
        nbytes: about what the layout takes in memory.
    """

    def __init__(self, tags: tuple[str, ...]) -> None:
        values = [_value(tag) for tag in tags]
        self.summary = b"".join(values)
        self.places = np.cumsum(np.fromiter(map(len, values), np.int64, len(values))) - 4
        self.summary_head = _SUMMARY_KEY + varint(len(self.summary))
        self.nbytes = _COPIES * len(self.summary) + _TAG_BYTES * len(tags) + _LAYOUT_BYTES
        self._heads: dict[int, bytes] = {}
        self._templates: dict[int, Template] = {}

    def pieces(self) -> list[bytes]:
        """What precedes a number, and the number, in turn: the odd ones are filled in."""
        found, before = list[bytes](), 0
        for place in self.places.tolist():
            found += [self.summary[before:place], bytes(4)]
            before = place + 4
        return found

    def head(self, step_bytes: int) -> bytes:
        """The record's head when the step's field has `step_bytes` bytes, its key included."""
        head = self._heads.get(step_bytes)
        if head is None:
            fixed = len(WALL_TIME_KEY) + WALL_TIME.size + len(self.summary_head)
            head = record_head(fixed + step_bytes + len(self.summary))
            self._heads[step_bytes] = head
        return head

    def template(self, step_bytes: int) -> Template:
        """The record when the step itself has `step_bytes` bytes."""
        template = self._templates.get(step_bytes)
        if template is None:
            step = STEP_KEY + bytes(step_bytes) if step_bytes else b""
            head = self.head(len(step)) + WALL_TIME_KEY + bytes(WALL_TIME.size)
            before = b"".join((head, step, self.summary_head))
            record = b"".join((before, self.summary, bytes(CRC.size)))
            # Steps grow: the template before this one is not needed again.
            self._templates = {step_bytes: Template(record, step_bytes, len(before))}
            template = self._templates[step_bytes]
        return template


class Layouts:
    """The layouts of recent tag tuples, in bounded memory."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[str, ...], Layout] = {}
        self.nbytes = 0

    def of(self, tags: tuple[str, ...]) -> Layout:
        """The layout of `tags`."""
        layout = self._layouts.get(tags)
        if layout is None:
            layout = Layout(tags)
            if self.nbytes + layout.nbytes > _MAX_CACHED_BYTES:
                self._forget()
            self.nbytes += layout.nbytes
            self._layouts[tags] = layout
        return layout

    def _forget(self) -> None:
        """Let go of every other one: of more than there is room for, in turn, some are found."""
        for tags in list(self._layouts)[::2]:
            self.nbytes -= self._layouts.pop(tags).nbytes


def step_sizes(steps: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """How many bytes each step has as a varint."""
    return np.searchsorted(_VARINT_STARTS, steps, side="right")


def varints(steps: npt.NDArray[np.uint64], size: int) -> npt.NDArray[np.uint8]:
    """Steps that all have `size` bytes as varints, shape (steps, size)."""
    # Seven bits a byte, the lowest first; the top bit says that another byte follows.
    septets = steps[:, None] >> np.arange(0, 7 * size, 7, dtype=np.uint64)
    found = septets.astype(np.uint8) | np.uint8(0x80)
    found[:, -1] &= 0x7F
    return found


def varint(number: int) -> bytes:
    """A number as protocol buffers write it."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _value(tag: str) -> bytes:
    """A Summary.Value under `tag`, its number 0."""
    # What is no text (lone surrogates) must not stop the run; the codec lets none pass.
    name = tag.encode("utf-8", "replace")
    size = len(name)
    if size <= 120:  # all lengths are one byte
        return b"\x0a%c\x0a%c%b\x15\0\0\0\0" % (size + 7, size, name)
    head = _TAG_KEY + varint(size) + name + _SIMPLE_VALUE_KEY
    return _VALUE_KEY + varint(len(head) + 4) + head + bytes(4)

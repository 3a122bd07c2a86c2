"""Blocks of numbers to TensorBoard events: the hot path, bytes laid out once for each tag tuple.

Every row of a block becomes one Event with all its tags, byte for byte as protocol buffers would
serialize it. All rows of one tag tuple are alike but for the wall time, the step, the numbers and
the checksum. Only the step changes the length (a varint), so rows are taken in stretches whose
steps have equally many bytes: such a stretch is a table, filled column by column. Too few rows to
pay for numpy's fixed costs are joined from pieces, one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct
from typing import Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from ..points import ScalarBlock, wall_times_s
from .event_file import CRC, HEAD, MASK_DELTA, masked, record_head

_Bytes = npt.NDArray[np.uint8]
_FLOAT32: Final = np.dtype("<f4")
_FOUR_BYTES: Final = np.dtype("V4")

_WALL_TIME_KEY: Final = b"\x09"  # Event.wall_time, field 1, double
_STEP_KEY: Final = b"\x10"  # Event.step, field 2, varint
_SUMMARY_KEY: Final = b"\x2a"  # Event.summary, field 5
_VALUE_KEY: Final = b"\x0a"  # Summary.value, field 1
_TAG_KEY: Final = b"\x0a"  # Summary.Value.tag, field 1
_SIMPLE_VALUE_KEY: Final = b"\x15"  # Summary.Value.simple_value, field 2, float
_WALL_TIME: Final = Struct("<d")

_VARINT_STARTS: Final = np.array([1] + [1 << 7 * i for i in range(1, 10)], np.uint64)
"""The smallest number of each length as a varint; 0, the default, is left out altogether."""

_MIN_TABLE_ROWS: Final = 12
"""Fewer rows than this are faster joined than laid out as a table (measured at 1 to 100 tags)."""

_TABLE_BYTES: Final = 256 << 10
"""A table of this size stays in the cache while its columns are filled."""

_MAX_CACHED_BYTES: Final = 512 << 10
"""Bytes of one record of each cached layout, all together; with its pieces a layout is larger."""


class ScalarEvents:
    """Turns blocks into records of an event file; remembers the layouts of recent tag tuples."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[str, ...], _Layout] = {}
        self._cached_bytes = 0

    def records(self, block: ScalarBlock) -> Iterator[bytes | memoryview]:
        """Yield the records of `block` in the order of its rows, some 256 KiB at a time.

        The numbers become float32, as TensorBoard's readers expect them: what is too large for
        that becomes infinite; NaN and infinities stay.
        """
        layout = self._layout(block.tags)
        with np.errstate(all="ignore"):
            values = block.values.astype(_FLOAT32)
        steps, times = block.steps.view(np.uint64), block.times_ns
        if len(steps) < _MIN_TABLE_ROWS:
            yield _joined(layout, steps, times, values)
            return
        for first, last, size in _stretches(steps):
            if last - first < _MIN_TABLE_ROWS:
                rows = slice(first, last)
                yield _joined(layout, steps[rows], times[rows], values[rows])
                continue
            table = layout.table(size)
            height = max(1, _TABLE_BYTES // table.template.size)
            for top in range(first, last, height):
                rows = slice(top, min(top + height, last))
                yield _filled(table, steps[rows], times[rows], values[rows])

    def _layout(self, tags: tuple[str, ...]) -> _Layout:
        layout = self._layouts.get(tags)
        if layout is None:
            layout = _Layout(tags)
            self._cached_bytes += layout.summary_bytes
            if self._cached_bytes > _MAX_CACHED_BYTES:
                self._layouts.clear()
                self._cached_bytes = layout.summary_bytes
            self._layouts[tags] = layout
        return layout


@dataclass(frozen=True, slots=True)
class _Table:
    """One record with steps of a fixed number of bytes: what is constant, and where the rest goes.

    Attributes:
        template: the record, with zeros where something is filled in.
        step: position of the step's first byte.
        step_bytes: how many bytes it has (0: the step is 0 and left out).
        values: positions of the numbers' bytes, 4 for each tag.
    """

    template: _Bytes
    step: int
    step_bytes: int
    values: npt.NDArray[np.intp]


class _Layout:
    """The bytes of an Event under one tuple of tags."""

    def __init__(self, tags: tuple[str, ...]) -> None:
        # Pieces in turn: what precedes a number, the number. The odd ones are filled in.
        self.pieces: list[bytes] = []
        for tag in tags:
            # What is no text (lone surrogates) must not stop the run; the codec lets none pass.
            name = tag.encode("utf-8", "replace")
            head = _TAG_KEY + _varint(len(name)) + name + _SIMPLE_VALUE_KEY
            self.pieces += [_VALUE_KEY + _varint(len(head) + 4) + head, bytes(4)]
        self.summary_bytes = sum(map(len, self.pieces))
        self.summary_head = _SUMMARY_KEY + _varint(self.summary_bytes)
        self._heads: dict[int, bytes] = {}
        self._tables: dict[int, _Table] = {}

    def head(self, step_bytes: int) -> bytes:
        """The record's head when the step's field has `step_bytes` bytes, its key included."""
        head = self._heads.get(step_bytes)
        if head is None:
            fixed = len(_WALL_TIME_KEY) + _WALL_TIME.size + len(self.summary_head)
            head = record_head(fixed + step_bytes + self.summary_bytes)
            self._heads[step_bytes] = head
        return head

    def table(self, step_bytes: int) -> _Table:
        """The record as a table's row when the step itself has `step_bytes` bytes."""
        table = self._tables.get(step_bytes)
        if table is None:
            step = _STEP_KEY + bytes(step_bytes) if step_bytes else b""
            before = self.head(len(step)) + _WALL_TIME_KEY + bytes(_WALL_TIME.size)
            record = b"".join((before, step, self.summary_head, *self.pieces, bytes(CRC.size)))
            ends = np.cumsum([len(piece) for piece in self.pieces], dtype=np.intp)[::2]
            starts = len(before) + len(step) + len(self.summary_head) + ends
            table = _Table(
                np.frombuffer(record, np.uint8),
                len(before) + len(_STEP_KEY),
                step_bytes,
                (starts[:, None] + np.arange(4)).ravel(),
            )
            self._tables[step_bytes] = table
        return table


def _stretches(steps: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int, int]]:
    """Yield (first row, row after the last, bytes of the step) of each stretch of like rows."""
    sizes = np.searchsorted(_VARINT_STARTS, steps, side="right")
    edges = [0, *(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(steps)]
    for first, last in pairwise(edges):
        yield first, last, int(sizes[first])


def _joined(
    layout: _Layout,
    steps: npt.NDArray[np.uint64],
    times_ns: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
) -> bytes:
    """The rows' records, each joined from its pieces."""
    records: list[bytes] = []
    pieces = layout.pieces.copy()
    columns = zip(steps.tolist(), times_ns.tolist(), values.view(_FOUR_BYTES).tolist(), strict=True)
    for step, time_ns, numbers in columns:
        pieces[1::2] = numbers
        wall_time = _WALL_TIME.pack(wall_times_s(time_ns))
        field = _STEP_KEY + _varint(step) if step else b""
        body = b"".join((_WALL_TIME_KEY, wall_time, field, layout.summary_head, *pieces))
        records += (layout.head(len(field)), body, CRC.pack(masked(google_crc32c.value(body))))
    return b"".join(records)


def _filled(
    table: _Table,
    steps: npt.NDArray[np.uint64],
    times_ns: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
) -> memoryview:
    """The rows' records, filled in column by column; all steps have `table.step_bytes` bytes."""
    records = np.empty((len(steps), table.template.size), np.uint8)
    records[:] = table.template
    wall_time = HEAD.size + len(_WALL_TIME_KEY)
    records[:, wall_time : wall_time + _WALL_TIME.size] = _bytes_of(wall_times_s(times_ns), "<f8")
    if table.step_bytes:
        # Seven bits a byte, the lowest first; the top bit says that another byte follows.
        septets = steps[:, None] >> np.arange(0, 7 * table.step_bytes, 7, dtype=np.uint64)
        varints = septets.astype(np.uint8) | np.uint8(0x80)
        varints[:, -1] &= 0x7F
        records[:, table.step : table.step + table.step_bytes] = varints
    records[:, table.values] = _bytes_of(values, "<f4")
    bodies = records[:, HEAD.size : -CRC.size]
    crcs = np.fromiter(map(google_crc32c.value, bodies), np.uint32, len(bodies))
    records[:, -CRC.size :] = _bytes_of(_masked(crcs), "<u4")
    return records.data


def _bytes_of(column: npt.NDArray[np.generic], dtype: str) -> _Bytes:
    """The little-endian bytes of each row of `column`, shape (rows, bytes)."""
    return np.ascontiguousarray(column, dtype).reshape(len(column), -1).view(np.uint8)


def _masked(crcs: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """`masked` for a column: the numbers wrap at 32 bits by themselves."""
    right, left = np.uint32(15), np.uint32(17)
    return ((crcs >> right) | (crcs << left)) + np.uint32(MASK_DELTA)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)

"""Blocks of numbers to TensorBoard events: the hot path.

Every row of a block becomes one Event with all its tags, byte for byte as protocol buffers would
serialize it. Rows whose steps have equally many bytes are alike but for what is filled in
(`event_layout`): a stretch of such rows is a table, filled column by column; rows of many tag
tuples in turn are a `sheet`. Too few rows to pay for numpy's fixed costs are joined from pieces,
one by one. Which way is taken changes no byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from ..rows.points import MixedBlock, ScalarBlock, wall_times_s
from .event_file import CRC, HEAD, masked
from .event_layout import (
    STEP_AT,
    STEP_KEY,
    WALL_TIME,
    WALL_TIME_AT,
    WALL_TIME_KEY,
    Layout,
    Layouts,
    Template,
    step_sizes,
    varint,
    varints,
)
from .sheet import Sheet, masked_column, places_of

_Bytes = npt.NDArray[np.uint8]
_FLOAT32: Final = np.dtype("<f4")
_FOUR_BYTES: Final = np.dtype("V4")

_MIN_TABLE_ROWS: Final = 12
"""Fewer rows than this are faster joined than laid out as a table (measured at 1 to 100 tags)."""

_TABLE_BYTES: Final = 256 << 10
"""A table of this size stays in the cache while its columns are filled."""


class ScalarEvents:
    """Turns blocks into records of an event file; remembers the layouts of recent tag tuples."""

    def __init__(self) -> None:
        self.layouts = Layouts()

    def records(self, block: ScalarBlock) -> Iterator[bytes | memoryview]:
        """Yield the records of `block` in the order of its rows, some 256 KiB at a time.

        The numbers become float32, as TensorBoard's readers expect them: what is too large for
        that becomes infinite; NaN and infinities stay.
        """
        layout = self.layouts.of(block.tags)
        values = _float32(block.values)
        steps, times = block.steps.view(np.uint64), block.times_ns
        if len(steps) < _MIN_TABLE_ROWS:
            yield _joined(layout, steps, times, values)
            return
        for first, last, size in _stretches(steps):
            if last - first < _MIN_TABLE_ROWS:
                rows = slice(first, last)
                yield _joined(layout, steps[rows], times[rows], values[rows])
                continue
            template = layout.template(size)
            columns = _number_bytes(layout, template)
            height = max(1, _TABLE_BYTES // len(template.record))
            for top in range(first, last, height):
                rows = slice(top, min(top + height, last))
                yield _filled(template, columns, steps[rows], times[rows], values[rows])

    def gathered(self, blocks: Sequence[ScalarBlock | MixedBlock]) -> bytes | bytearray:
        """The records of many small blocks, in the order of their rows."""
        rows = sum(len(block.steps) for block in blocks)
        if rows < _MIN_TABLE_ROWS:
            alone = (b.alone() if isinstance(b, MixedBlock) else (b,) for b in blocks)
            return b"".join(part for some in alone for one in some for part in self.records(one))
        tag_sets: list[tuple[str, ...]] = []
        which: list[npt.NDArray[np.int64]] = []
        for block in blocks:
            if isinstance(block, MixedBlock):
                which.append(block.which + len(tag_sets))
                tag_sets += block.tag_sets
            else:
                which.append(np.full(len(block.steps), len(tag_sets), np.int64))
                tag_sets.append(block.tags)
        return _sheet(
            [self.layouts.of(tags) for tags in tag_sets],
            np.concatenate(which),
            np.concatenate([block.steps for block in blocks]).view(np.uint64),
            np.concatenate([block.times_ns for block in blocks]),
            _float32(np.concatenate([block.values.reshape(-1) for block in blocks])),
        )


def _float32(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return values.astype(_FLOAT32)


def _stretches(steps: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int, int]]:
    """Yield (first row, row after the last, bytes of the step) of each stretch of like rows."""
    sizes = step_sizes(steps)
    edges = [0, *(np.flatnonzero(np.diff(sizes)) + 1).tolist(), len(steps)]
    for first, last in pairwise(edges):
        yield first, last, int(sizes[first])


def _joined(
    layout: Layout,
    steps: npt.NDArray[np.uint64],
    times_ns: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
) -> bytes:
    """The rows' records, each joined from its pieces."""
    records: list[bytes] = []
    pieces = layout.pieces()
    columns = zip(steps.tolist(), times_ns.tolist(), values.view(_FOUR_BYTES).tolist(), strict=True)
    for step, time_ns, numbers in columns:
        pieces[1::2] = numbers
        wall_time = WALL_TIME.pack(wall_times_s(time_ns))
        field = STEP_KEY + varint(step) if step else b""
        body = b"".join((WALL_TIME_KEY, wall_time, field, layout.summary_head, *pieces))
        records += (layout.head(len(field)), body, CRC.pack(masked(google_crc32c.value(body))))
    return b"".join(records)


def _number_bytes(layout: Layout, template: Template) -> npt.NDArray[np.int64]:
    """Positions of the numbers' bytes in the template, 4 for each tag."""
    return (template.first + layout.places[:, None] + np.arange(4)).ravel()


def _filled(
    template: Template,
    columns: npt.NDArray[np.int64],
    steps: npt.NDArray[np.uint64],
    times_ns: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
) -> memoryview:
    """The rows' records as a table; all steps have `template.step_bytes` bytes."""
    records = np.empty((len(steps), len(template.record)), np.uint8)
    records[:] = np.frombuffer(template.record, np.uint8)
    records[:, WALL_TIME_AT : WALL_TIME_AT + 8] = _bytes_of(wall_times_s(times_ns), "<f8")
    if template.step_bytes:
        step = slice(STEP_AT, STEP_AT + template.step_bytes)
        records[:, step] = varints(steps, template.step_bytes)
    records[:, columns] = _bytes_of(values, "<f4")
    bodies = records[:, HEAD.size : -CRC.size]
    crcs = np.fromiter(map(google_crc32c.value, bodies), np.uint32, len(bodies))
    records[:, -CRC.size :] = _bytes_of(masked_column(crcs), "<u4")
    return records.data


def _sheet(
    layouts: Sequence[Layout],
    which: npt.NDArray[np.int64],
    steps: npt.NDArray[np.uint64],
    times_ns: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
) -> bytearray:
    """The records of rows of several layouts in turn; `values` of one row after the other."""
    sizes = step_sizes(steps)
    # Each layout with each length of a step that occurs with it, as one number.
    kinds, kind = np.unique(which * 16 + sizes, return_inverse=True)
    used = [layouts[n] for n in (kinds // 16).tolist()]
    templates = [
        layout.template(size) for layout, size in zip(used, (kinds % 16).tolist(), strict=True)
    ]
    sheet = Sheet([template.record for template in templates], kind)
    sheet.put("<f8", sheet.starts + WALL_TIME_AT, wall_times_s(times_ns))
    for size in np.flatnonzero(np.bincount(sizes)).tolist():
        rows = np.flatnonzero(sizes == size)
        for column, numbers in enumerate(varints(steps[rows], size).T if size else ()):
            sheet.put("u1", sheet.starts[rows] + STEP_AT + column, numbers)
    firsts = np.fromiter((t.first for t in templates), np.int64, len(templates))
    places = places_of(sheet.starts + firsts[kind], [layout.places for layout in used], kind)
    sheet.put("<f4", places, values)
    return sheet.seal()


def _bytes_of(column: npt.NDArray[np.generic], dtype: str) -> _Bytes:
    """The little-endian bytes of each row of `column`, shape (rows, bytes)."""
    return np.ascontiguousarray(column, dtype).reshape(len(column), -1).view(np.uint8)

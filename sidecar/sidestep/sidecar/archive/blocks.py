"""Makes blocks of numbers out of an archive file's frames: small ones are put together by numpy."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ..rows.points import ScalarBlock
from ..sinks import archive_format as form
from .frames import FrameReader

_HEAD_WORDS: Final = form.BODY_HEAD.size // 8
_ALL: Final = slice(None)

_FEW: Final = 64
_HELD_BYTES: Final = 4 << 20
"""Bodies of more tag sets than a few are held until they have so many bytes: of a loop that emits
thousands of dicts in turn, a megabyte of the file holds one or two rows of each."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which numbers are wanted: see `reader.Run.blocks`."""

    tags: tuple[str, ...] = ()
    first_step: int | None = None
    last_step: int | None = None

    def tag(self, tag: str) -> bool:
        """Whether a tag is wanted."""
        return not self.tags or any(fnmatch.fnmatchcase(tag, glob) for glob in self.tags)


@dataclass(slots=True)
class _TagSet:
    """A tag set of a file, and the bodies under it that are not a block yet.

    Attributes:
        tags: all its tags.
        wanted: those of them that are wanted.
        columns: where these are; all, or an array of int.
    """

    tags: tuple[str, ...]
    wanted: tuple[str, ...]
    columns: slice | npt.NDArray[np.intp]
    bodies: list[bytes]


class BlockReader:
    """The blocks of one file.

    Args:
        frames: the file.
        wanted: which numbers are wanted.
    """

    def __init__(self, frames: FrameReader, wanted: Filter) -> None:
        self._frames = frames
        self._wanted = wanted
        self._tag_sets: list[_TagSet] = []
        self._open: list[_TagSet] = []  # those that have bodies, in the order of their first one
        self._open_tags: set[str] = set()
        self._open_bytes = 0

    def blocks(self) -> Iterator[ScalarBlock]:
        """Yield the blocks; why it is not all of the file, `frames.problem` says."""
        first = True
        for bodies in self._frames.bodies():
            rest = 0  # bytes of frames in `bodies` that are not understood
            for number, body in enumerate(bodies):
                try:
                    if first:
                        form.run_of(body)
                        first = False
                    else:
                        yield from self._take(body)
                except form.FormatError as error:
                    rest = sum(len(one) + form.FRAME_BYTES for one in bodies[number:])
                    self._frames.problem = str(error)
                    break
            if len(self._open) <= _FEW or self._open_bytes >= _HELD_BYTES:
                yield from self._put_together()
            self._frames.offset -= rest
        yield from self._put_together()

    def _take(self, body: bytes) -> Iterator[ScalarBlock]:
        kind, number, rows, width = form.head_of(body)
        if kind == form.TAGS:
            self._define(body)
        if kind != form.BLOCK:
            return
        if number >= len(self._tag_sets):
            raise form.FormatError(f"a block of tag set {number}, which is not defined")
        tag_set = self._tag_sets[number]
        size = form.BODY_HEAD.size + 8 * rows * (2 + width)
        if width != len(tag_set.tags) or len(body) != size or not rows:
            raise form.FormatError(f"a block of {rows} rows of {width} tags in {len(body)} bytes")
        if not tag_set.wanted:
            return
        if not tag_set.bodies:
            # Blocks of different tag sets change places only where no tag could notice it.
            if not self._open_tags.isdisjoint(tag_set.wanted):
                yield from self._put_together()
            self._open.append(tag_set)
            self._open_tags.update(tag_set.wanted)
        tag_set.bodies.append(body)
        self._open_bytes += len(body)

    def _define(self, body: bytes) -> None:
        number, tags, _ = form.tags_of(body)
        if number != len(self._tag_sets):
            raise form.FormatError(f"tag set {number} is defined as number {len(self._tag_sets)}")
        at = [column for column, tag in enumerate(tags) if self._wanted.tag(tag)]
        columns = _ALL if len(at) == len(tags) else np.array(at, np.intp)
        self._tag_sets.append(_TagSet(tags, tuple(tags[i] for i in at), columns, []))

    def _put_together(self) -> Iterator[ScalarBlock]:
        for tag_set in self._open:
            block = self._selected(tag_set)
            tag_set.bodies = []
            if len(block.steps):
                yield block
        self._open.clear()
        self._open_tags.clear()
        self._open_bytes = 0

    def _selected(self, tag_set: _TagSet) -> ScalarBlock:
        steps, times, values = _columns(tag_set.bodies, len(tag_set.tags))
        values = values[:, tag_set.columns]
        first, last = self._wanted.first_step, self._wanted.last_step
        if first is not None or last is not None:
            rows = np.ones(len(steps), np.bool_)
            if first is not None:
                rows &= steps >= first
            if last is not None:
                rows &= steps <= last
            steps, times, values = steps[rows], times[rows], values[rows]
        return ScalarBlock(tag_set.wanted, steps, times, values)


_Columns = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]


def _columns(bodies: list[bytes], width: int) -> _Columns:
    """Steps, times and values of all `bodies`, which are of one tag set of `width` tags."""
    size = len(bodies[0])
    if len(bodies) > 1 and any(len(body) != size for body in bodies):
        parts = [_table([body], width) for body in bodies]
        steps, times, values = zip(*parts, strict=True)
        return np.concatenate(steps), np.concatenate(times), np.concatenate(values)
    return _table(bodies, width)


def _table(bodies: list[bytes], width: int) -> _Columns:
    """The same of bodies that have equally many rows: one is a row of a table."""
    data = bodies[0] if len(bodies) == 1 else b"".join(bodies)
    table: npt.NDArray[np.int64] = np.frombuffer(data, "<i8").reshape(len(bodies), -1)
    rows = (table.shape[1] - _HEAD_WORDS) // (2 + width)
    ends = _HEAD_WORDS + rows, _HEAD_WORDS + 2 * rows
    steps = table[:, _HEAD_WORDS : ends[0]].reshape(-1)
    times = table[:, ends[0] : ends[1]].reshape(-1)
    values = table[:, ends[1] :].view(np.float64).reshape(-1, width)
    return steps, times, values

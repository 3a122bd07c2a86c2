"""Cuts what lies in the store into what is sent: slices as they are, large records, holes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from sidestep.proto.segments import STUB

from .holes import Hole
from .segment import Large, Segment
from .store import FULL, Store

_JOINED: Final = 1000
"""Dropped records that are announced as one hole; looking for more would hold the lock too long."""

_first_seq = attrgetter("first_seq")


@dataclass(frozen=True, slots=True)
class Slice:
    """Records `first_seq` to `last_seq`, as they lie in a segment.

    `data` is the segment's own memory, good until the records are acknowledged: copying it here
    would hold the outbox's lock meanwhile, and an `emit` would wait.
    """

    first_seq: int
    last_seq: int
    data: memoryview


Chunk = Slice | Large | Hole


def take(store: Store, seq: int, may_send: Callable[[int], bool]) -> Chunk | None:
    """What comes from record `seq` on, if so many bytes may be sent; it counts as sent then.

    A slice may begin before `seq` (at the last place where one was cut); the daemon skips what
    it has.

    Args:
        store: where the records are.
        seq: the record; neither acknowledged nor before one that is not.
        may_send: whether a chunk of that many bytes may go.
    """
    if seq > store.tail[1]:
        return None
    hole = store.holes.at(seq)
    if hole is not None:
        return _announce(store, Hole(seq, hole.last_seq, hole.reason), may_send)
    segment = store.segments[bisect_right(store.segments, seq, key=_first_seq) - 1]
    first_seq, start = segment.place(seq)
    last_seq, end = store.end(segment)
    stub = segment.stub_from(start)
    if stub is not None:
        if stub[1] == start:
            large = store.larges.get(seq)
            if large is None:
                return _announce(store, _dropped(store, segment, seq, start), may_send)
            if not may_send(large.total):
                return None
            store.mark_sent(seq)
            return large
        last_seq, end = stub[0] - 1, stub[1]
    hole = store.holes.after(first_seq)
    if hole is not None and hole.first_seq <= last_seq:
        last_seq, end = hole.first_seq - 1, store.offset(segment, hole.first_seq)
    if not may_send(end - start):
        return None
    segment.mark(last_seq + 1, end)
    store.mark_sent(last_seq)
    base = store.buffer.base(segment.index)
    return Slice(first_seq, last_seq, store.memory[base + start : base + end])


def read_piece(store: Store, large: Large, number: int) -> tuple[int, memoryview]:
    """The bytes of piece `number` of a large record that was taken, and their offset in it."""
    size = store.segment_bytes
    base, offset = store.buffer.base(large.pieces[number]), number * size
    return offset, store.memory[base : base + min(size, large.total - offset)]


def _announce(store: Store, hole: Hole, may_send: Callable[[int], bool]) -> Hole | None:
    if not may_send(0):
        return None
    store.mark_sent(hole.last_seq)
    return hole


def _dropped(store: Store, segment: Segment, seq: int, start: int) -> Hole:
    """The large record `seq` that was dropped, with those that follow it directly."""
    last_seq, offset = seq, start + STUB.size
    while last_seq - seq < _JOINED - 1:
        if segment.stub_from(offset) != (last_seq + 1, offset) or last_seq + 1 in store.larges:
            break
        last_seq, offset = last_seq + 1, offset + STUB.size
    return Hole(seq, last_seq, FULL)

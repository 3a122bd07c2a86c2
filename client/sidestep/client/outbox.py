"""The outbox: where every record waits, in memory that outlives the process, until it is durable.

`put_scalars` is the hot path of the whole project: it packs numbers straight into the segment
that is open, under a lock that is never held across a system call, and stores one word to commit
them. The sender reads slices of segments from the other side. When no segment is free, the oldest
large payload goes, else the oldest segment of small records, and what went is counted and
announced in its turn (`Hole`). What was sent and not yet acknowledged is never evicted: whether it
arrived is unknown, and the books must balance.

Threads and signals. The lock is reentrant and `_busy` tells a signal handler (or a `__del__` that
the garbage collector runs) that it has interrupted a critical section of its own thread; its
record is then deferred to the end of that section.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from sidestep.proto.limits import MAX_DATA_BYTES, MAX_RECORD_BYTES
from sidestep.proto.records import SCALARS, scalars_struct
from sidestep.proto.segments import (
    ACKED_DROPPED,
    ACKED_SEQ,
    DROPPED,
    LARGE,
    LOST,
    PIECE,
    REJECTED,
    SMALL,
    STUB,
    Outbox as OutboxBuffer,
)

_MAX_DEFERRED: Final = 1000
"""Records that signal handlers may leave behind during one critical section."""


class TagSet:
    """How the numbers of one tuple of tags are packed: made once, used at every `emit`."""

    __slots__ = ("count", "id", "pack_into", "size", "tags")

    def __init__(self, id: int, tags: tuple[str, ...]) -> None:
        layout = scalars_struct(len(tags))
        self.id = id
        self.tags = tags
        self.count = len(tags)
        self.size = layout.size
        self.pack_into = layout.pack_into


@dataclass(frozen=True, slots=True)
class Slice:
    """Records `first_seq` to `last_seq`, as they lie in a segment."""

    first_seq: int
    last_seq: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Large:
    """One record of `total` bytes, to be read piece by piece."""

    seq: int
    total: int
    pieces: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hole:
    """Records `first_seq` to `last_seq` were dropped."""

    first_seq: int
    last_seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts of records and their bytes; `emitted = acked + held + dropped` holds for both."""

    emitted: int = 0
    acked: int = 0
    held: int = 0
    dropped: int = 0
    emitted_bytes: int = 0
    acked_bytes: int = 0
    held_bytes: int = 0
    dropped_bytes: int = 0


@dataclass(slots=True)
class _Stub:
    offset: int
    seq: int
    total: int
    pieces: tuple[int, ...]
    reason: str = ""  # set when the record was dropped


@dataclass(slots=True)
class _Segment:
    index: int
    first_seq: int
    last_seq: int  # valid when closed
    used: int  # valid when closed
    mark_seqs: list[int] = field(default_factory=list[int])  # record `mark_seqs[i]` begins ...
    mark_offsets: list[int] = field(default_factory=list[int])  # ... at `mark_offsets[i]`
    stubs: list[_Stub] = field(default_factory=list[_Stub])

    def mark(self, seq: int, offset: int) -> None:
        """Remember where record `seq` begins, so that sending can start there again."""
        if seq > self.mark_seqs[-1]:
            self.mark_seqs.append(seq)
            self.mark_offsets.append(offset)


class Outbox:
    """Records between `emit` and their acknowledgement.

    Args:
        buffer: the layout over the memory that holds them.
        first_seq: number of the first record.
    """

    def __init__(self, buffer: OutboxBuffer, first_seq: int = 1) -> None:
        self._layout = buffer.layout
        self._words = buffer.words
        self._table = buffer.table
        self._memory = buffer.buffer
        self._outbox = buffer
        self._lock = threading.RLock()
        self._busy = False
        self._deferred: deque[Callable[[], object]] = deque()
        self._free = list(range(self._layout.segment_count))
        self._larges: OrderedDict[int, tuple[_Segment, _Stub]] = OrderedDict()
        self._holes: list[Hole] = []
        self._segments: list[_Segment] = []
        self._sent_seq = first_seq - 1
        self._acked_seq = first_seq - 1
        self._acked_dropped = 0
        self._lost = self._lost_bytes = 0
        self._dropped_bytes = 0
        self._written_bytes = 0  # in closed segments and large records
        self._freed_bytes = 0
        self.room = threading.Condition(threading.Lock())
        self._open(first_seq)

    # --- the trainer's side --------------------------------------------------------------

    @property
    def max_tags(self) -> int:
        """Most scalars that fit into one record here."""
        return (self._layout.max_small_bytes - scalars_struct(0).size) // 8

    @property
    def max_record_bytes(self) -> int:
        """The largest record that can ever be held: half of all segments."""
        return min(MAX_RECORD_BYTES, self._layout.segment_count // 2 * self._layout.segment_bytes)

    @property
    def last_seq(self) -> int:
        """Number of the newest record."""
        return self._tail[1]

    @property
    def acked_seq(self) -> int:
        """Everything up to here is durable, or was dropped and counted."""
        return self._acked_seq

    def define_tags(self, id: int, tags: tuple[str, ...]) -> TagSet | None:
        """Store a tag set where it survives; None when there is no room for more."""
        with self._lock:
            return TagSet(id, tags) if self._outbox.define_tags(tags) else None

    def put_scalars(
        self, tag_set: TagSet, step: int, time_ns: int, values: Iterable[float]
    ) -> bool:
        """Append one row of numbers.

        Returns:
            False when there was no room and it was dropped (and counted).

        Raises:
            struct.error, OverflowError, TypeError: a value is no number; nothing was appended.
        """
        with self._lock:
            if self._busy:
                row = tuple(values)
                return self._defer(lambda: self.put_scalars(tag_set, step, time_ns, row))
            self._busy = True
            try:
                at, seq = self._tail
                end = at + tag_set.size
                if end > self._limit:
                    if not self._roll():
                        return self._lose(tag_set.size)
                    at, seq = self._tail
                    end = at + tag_set.size
                tag_set.pack_into(
                    self._memory,
                    at,
                    tag_set.size,
                    SCALARS,
                    0,
                    0,
                    tag_set.id,
                    tag_set.count,
                    step,
                    time_ns,
                    *values,
                )
                self._table[self._used_word] = end - self._base
                # One store, so that an interrupt cannot part the position from the number.
                self._tail = (end, seq + 1)
            finally:
                self._busy = False
                if self._deferred:
                    self._run_deferred()
        return True

    def put_record(self, total: int, pieces: Sequence[bytes | bytearray | memoryview]) -> bool:
        """Append an encoded record of `total` bytes, given as pieces to be joined.

        Returns:
            False when there was no room and it was dropped (and counted).
        """
        with self._lock:
            if self._busy:
                data = b"".join(pieces)
                return self._defer(lambda: self.put_record(total, [data]))
            self._busy = True
            try:
                if total <= self._layout.max_small_bytes:
                    return self._put_small(total, pieces)
                return self._put_large(total, pieces)
            finally:
                self._busy = False
                if self._deferred:
                    self._run_deferred()

    def has_room(self, nbytes: int) -> bool:
        """Whether a record of `nbytes` could be appended without dropping anything."""
        with self._lock:
            if nbytes <= self._limit - self._tail[0]:
                return True
            needed = 1 if nbytes <= self._layout.max_small_bytes else self._pieces_of(nbytes) + 1
            return len(self._free) >= needed

    def count_lost(self, records: int, nbytes: int = 0) -> None:
        """Count records that were emitted and dropped before they got a number."""
        with self._lock:
            self._lost += records
            self._lost_bytes += nbytes
            self._words[LOST] = self._lost

    def count_rejected(self, rejected: int) -> None:
        """Leave the count of rejected values where a daemon can find it."""
        self._words[REJECTED] = rejected

    # --- the sender's side ---------------------------------------------------------------

    def next_chunk(self, seq: int) -> Slice | Large | Hole | None:
        """What comes from record `seq` on, or None when nothing was emitted after it.

        A slice may begin before `seq` (at the last place where one was cut); the daemon skips
        what it has.
        """
        with self._lock:
            for hole in self._holes:
                if hole.first_seq <= seq <= hole.last_seq:
                    return Hole(seq, hole.last_seq, hole.reason)
            segment = self._find(seq)
            if segment is None:
                return None
            self._busy = True
            try:
                return self._chunk(segment, seq)
            finally:
                self._busy = False
                if self._deferred:
                    self._run_deferred()

    def read_piece(self, large: Large, number: int) -> tuple[int, bytes]:
        """The bytes of piece `number` of a large record, and their offset in it."""
        size = self._layout.segment_bytes
        base, offset = self._outbox.base(large.pieces[number]), number * size
        return offset, bytes(self._memory[base : base + min(size, large.total - offset)])

    def mark_sent(self, last_seq: int) -> None:
        """Records up to `last_seq` went out: they are not evicted any more."""
        with self._lock:
            self._sent_seq = max(self._sent_seq, last_seq)

    def release(self, durable_seq: int, dropped: int) -> None:
        """Everything up to `durable_seq` is with the daemon: give its memory back."""
        with self._lock:
            self._acked_seq, self._acked_dropped = durable_seq, dropped
            self._words[ACKED_DROPPED] = dropped
            self._words[ACKED_SEQ] = durable_seq
            while len(self._segments) > 1 and self._segments[0].last_seq <= durable_seq:
                segment = self._segments.pop(0)
                self._freed_bytes += segment.used - STUB.size * len(segment.stubs)
                self._give_back(segment.index)
            while self._larges and next(iter(self._larges)) <= durable_seq:
                _, (_, stub) = self._larges.popitem(last=False)
                self._freed_bytes += stub.total
                for index in stub.pieces:
                    self._give_back(index)
            self._holes = [hole for hole in self._holes if hole.last_seq > durable_seq]
        with self.room:
            self.room.notify_all()

    def refuse(self, first_seq: int, last_seq: int, reason: str) -> None:
        """The daemon can never take these records: count them as dropped."""
        with self._lock:
            self._add_hole(first_seq, last_seq, reason)

    def totals(self) -> Totals:
        """The books, consistent with each other."""
        with self._lock:
            last_seq = self._tail[1]
            pending = sum(
                hole.last_seq - max(hole.first_seq, self._acked_seq + 1) + 1
                for hole in self._holes
            )
            held = last_seq - self._acked_seq - pending
            dropped = self._acked_dropped + pending + self._lost
            emitted = last_seq + self._lost
            emitted_bytes = self._numbered_bytes() + self._lost_bytes
            dropped_bytes = self._dropped_bytes + self._lost_bytes
            held_bytes = self._held_bytes()
            return Totals(
                emitted,
                emitted - held - dropped,
                held,
                dropped,
                emitted_bytes,
                emitted_bytes - held_bytes - dropped_bytes,
                held_bytes,
                dropped_bytes,
            )

    def close(self) -> None:
        """Release the memory; nothing may be called afterwards."""
        with self._lock:
            self._memory = memoryview(bytearray(0))
            self._outbox.close()

    # --- inside, with the lock held --------------------------------------------------------

    def _open(self, first_seq: int) -> bool:
        """Open a fresh segment for small records, if one can be had."""
        if not self._free and not self._evict():
            return False
        index = self._free.pop()
        self._outbox.open(index, SMALL, first_seq)
        segment = _Segment(index, first_seq, 0, 0, [first_seq], [0])
        base, word = self._outbox.base(index), self._outbox.used_word(index)
        limit, tail = base + self._layout.segment_bytes, (base, first_seq - 1)
        segments = [*self._segments, segment]
        # Stores without a call between them: an interrupt comes before all of them or after.
        self._segments = segments
        self._base = base
        self._limit = limit
        self._used_word = word
        self._tail = tail
        return True

    def _roll(self) -> bool:
        """Close the open segment and open the next."""
        at, seq = self._tail
        current = self._segments[-1]
        # Closed before another is sought, or the search could not evict it.
        current.last_seq, current.used = seq, at - self._base
        if not self._open(seq + 1):
            return False
        self._written_bytes += current.used - STUB.size * len(current.stubs)
        return True

    def _put_small(self, total: int, pieces: Iterable[bytes | bytearray | memoryview]) -> bool:
        if self._tail[0] + total > self._limit and not self._roll():
            return self._lose(total)
        at, seq = self._tail
        self._copy(at, pieces)
        self._table[self._used_word] = at + total - self._base
        self._tail = (at + total, seq + 1)
        return True

    def _put_large(self, total: int, pieces: Iterable[bytes | bytearray | memoryview]) -> bool:
        if self._tail[0] + STUB.size > self._limit and not self._roll():
            return self._lose(total)
        count = self._pieces_of(total)
        # A payload may push out older payloads, but never numbers.
        evictable = (s.pieces for seq, (_, s) in self._larges.items() if seq > self._sent_seq)
        if len(self._free) + sum(map(len, evictable)) < count:
            return self._lose(total)
        while len(self._free) < count:
            self._evict_large()
        at, seq = self._tail
        indices = tuple(self._free.pop() for _ in range(count))
        self._copy_over(indices, pieces)
        size = self._layout.segment_bytes
        for piece, index in enumerate(indices):
            used = min(size, total - piece * size)
            self._outbox.open(index, PIECE, seq + 1, used, piece)
        STUB.pack_into(self._memory, at, STUB.size, LARGE, 0, 0, total)
        self._table[self._used_word] = at + STUB.size - self._base
        self._tail = (at + STUB.size, seq + 1)
        segment = self._segments[-1]
        stub = _Stub(at - self._base, seq + 1, total, indices)
        segment.stubs.append(stub)
        segment.mark(seq + 1, stub.offset)
        segment.mark(seq + 2, stub.offset + STUB.size)
        self._larges[seq + 1] = (segment, stub)
        self._written_bytes += total
        return True

    def _copy(self, at: int, pieces: Iterable[bytes | bytearray | memoryview]) -> None:
        for piece in pieces:
            view = memoryview(piece).cast("B") if not isinstance(piece, bytes) else piece
            self._memory[at : at + len(view)] = view
            at += len(view)

    def _copy_over(
        self, indices: Sequence[int], pieces: Iterable[bytes | bytearray | memoryview]
    ) -> None:
        """Copy pieces one after the other into segments that need not be neighbours."""
        size = self._layout.segment_bytes
        offset = 0
        for piece in pieces:
            view = memoryview(piece).cast("B")
            done = 0
            while done < len(view):
                at = offset % size
                n = min(size - at, len(view) - done)
                base = self._outbox.base(indices[offset // size]) + at
                self._memory[base : base + n] = view[done : done + n]
                done += n
                offset += n

    def _evict(self) -> bool:
        """Make room: the oldest large payload first, then the oldest small records."""
        return self._evict_large() or self._evict_small()

    def _evict_large(self) -> bool:
        for seq, (segment, stub) in self._larges.items():
            if seq > self._sent_seq:
                self._drop_large(segment, stub, "outbox full")
                return True
        return False

    def _drop_large(self, segment: _Segment, stub: _Stub, reason: str) -> None:
        # Marked first: a daemon that adopts this outbox must not look for freed pieces.
        at = self._outbox.base(segment.index) + stub.offset
        STUB.pack_into(self._memory, at, STUB.size, DROPPED, 0, 0, stub.total)
        stub.reason = reason
        del self._larges[stub.seq]
        for index in stub.pieces:
            self._give_back(index)
        self._freed_bytes += stub.total
        self._dropped_bytes += stub.total
        self._add_hole(stub.seq, stub.seq, reason)

    def _evict_small(self) -> bool:
        # The last segment is the one being closed: evicting it would drop the newest records.
        for position, segment in enumerate(self._segments[:-1]):
            if segment.first_seq > self._sent_seq:
                for stub in segment.stubs:
                    if not stub.reason:
                        self._drop_large(segment, stub, "outbox full")
                nbytes = segment.used - STUB.size * len(segment.stubs)
                self._freed_bytes += nbytes
                self._dropped_bytes += nbytes
                del self._segments[position]
                self._give_back(segment.index)
                self._add_hole(segment.first_seq, segment.last_seq, "outbox full")
                return True
        return False

    def _give_back(self, index: int) -> None:
        self._outbox.free(index)
        self._free.append(index)

    def _add_hole(self, first_seq: int, last_seq: int, reason: str) -> None:
        """Insert a hole in order, swallowing those inside it and joining its neighbour."""
        kept = [
            h for h in self._holes if h.last_seq < first_seq or h.first_seq > last_seq
        ]
        at = bisect_right([h.first_seq for h in kept], first_seq)
        before = kept[at - 1] if at else None
        if before and before.last_seq + 1 == first_seq and before.reason == reason:
            kept[at - 1] = Hole(before.first_seq, last_seq, reason)
        else:
            kept.insert(at, Hole(first_seq, last_seq, reason))
        self._holes = kept

    def _find(self, seq: int) -> _Segment | None:
        if seq > self._tail[1]:
            return None
        at = bisect_right([s.first_seq for s in self._segments], seq) - 1
        return self._segments[at] if at >= 0 else None

    def _chunk(self, segment: _Segment, seq: int) -> Slice | Large | Hole:
        at = bisect_right(segment.mark_seqs, seq) - 1
        first_seq, start = segment.mark_seqs[at], segment.mark_offsets[at]
        is_open = segment is self._segments[-1]
        base = self._outbox.base(segment.index)
        end, last_seq = (
            (self._tail[0] - base, self._tail[1]) if is_open else (segment.used, segment.last_seq)
        )
        for stub in segment.stubs:
            if stub.offset == start:
                if stub.reason:
                    return Hole(stub.seq, stub.seq, stub.reason)
                return Large(stub.seq, stub.total, stub.pieces)
            if stub.offset > start:
                end, last_seq = stub.offset, stub.seq - 1
                break
        segment.mark(last_seq + 1, end)
        assert end - start <= MAX_DATA_BYTES
        return Slice(first_seq, last_seq, bytes(self._memory[base + start : base + end]))

    def _pieces_of(self, total: int) -> int:
        return -(-total // self._layout.segment_bytes)

    def _lose(self, nbytes: int) -> bool:
        self._lost += 1
        self._lost_bytes += nbytes
        self._words[LOST] = self._lost
        return False

    def _defer(self, put: Callable[[], object]) -> bool:
        if len(self._deferred) >= _MAX_DEFERRED:
            return self._lose(0)
        self._deferred.append(put)
        return True

    def _run_deferred(self) -> None:
        while self._deferred:
            try:
                self._deferred.popleft()()
            except Exception:  # it must not fail the `emit` that it interrupted
                self._lose(0)

    def _open_bytes(self) -> int:
        return self._tail[0] - self._base - STUB.size * len(self._segments[-1].stubs)

    def _numbered_bytes(self) -> int:
        return self._written_bytes + self._open_bytes()

    def _held_bytes(self) -> int:
        """Bytes in segments that are not given back, without what they hold that is acked."""
        held = self._numbered_bytes() - self._freed_bytes
        first = self._segments[0]
        at = bisect_right(first.mark_seqs, self._acked_seq + 1) - 1
        if at > 0:
            acked = first.mark_offsets[at]
            held -= acked - STUB.size * sum(stub.offset < acked for stub in first.stubs)
        return held


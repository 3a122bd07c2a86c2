"""Where records lie: segments of the outbox's memory, filled, read, pushed out and given back.

No lock and no thread is known here; `outbox` sees to it that one call runs at a time. A call can
end early all the same, by a KeyboardInterrupt in the trainer's thread. The interpreter raises one
only where Python code calls something or loops, so whatever belongs together is stored by
statements that do neither, at the end (``# All or nothing``): an interrupt comes before all
of them or after. What a call has begun with segments that are still free stands in `_half_open`
until then.

When no segment is free, the oldest large payload goes, else the oldest segment of small records.
What was sent and is not acknowledged is never pushed out: whether it arrived is unknown, and the
books must balance.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final

from sidestep.proto.limits import MAX_RECORD_BYTES
from sidestep.proto.records import HEADER
from sidestep.proto.segments import (
    ACKED_DROPPED,
    ACKED_SEQ,
    DROPPED,
    FREE,
    LARGE,
    PIECE,
    SMALL,
    STUB,
    Outbox as OutboxBuffer,
)

from .books import Totals
from .holes import Holes
from .segment import OFFSETS, Large, Segment

Piece = bytes | bytearray | memoryview

FULL: Final = "outbox full"
"""Why records were dropped that the daemon never refused."""

_KIND_AT: Final = 4
"""Where a record's kind stands in its header."""

_STATE: Final = -2
"""The word of a segment's state, seen from the one that commits its records."""

_first_seq = attrgetter("first_seq")


class Store:
    """All records that are not acknowledged, in order.

    Attributes:
        memory: the outbox's memory.
        table: its segment table.
        tail: where the next small record goes, and the number of the newest record.
        limit: where the open segment ends.
        base: where it begins.
        used_word: which word of `table` commits its records.
        buffer: the layout of all that.
        segment_bytes: size of a segment.
        segments: those that hold small records, oldest first; the last one is open.
        larges: the large records that are held, by number, oldest first.
        holes: the records that were pushed out with their segment, or refused.
        sent_seq: records up to here are, or may be, with the daemon.
        acked_seq: records up to here are durable in the daemon, or counted by it as dropped.
    """

    def __init__(self, buffer: OutboxBuffer) -> None:
        self.memory = buffer.buffer
        self.table = buffer.table
        self.tail: tuple[int, int] = (0, 0)
        self.limit = self.base = self.used_word = 0
        self.acked_seq = 0
        self.buffer = buffer
        self.segment_bytes = buffer.layout.segment_bytes
        self._free = list(range(buffer.layout.segment_count))
        self._half_open: tuple[int, ...] = ()
        self.segments: list[Segment] = []
        self.larges: dict[int, Large] = {}
        self.holes = Holes()
        self.sent_seq = 0
        self._acked_dropped = 0
        self._dropped = 0
        self._stored_bytes = 0  # in closed segments and large records, ever
        self._acked_bytes = 0
        self._dropped_bytes = 0
        self.roll()

    @property
    def max_small_bytes(self) -> int:
        """The largest record that lies in a segment with others."""
        return self.buffer.layout.max_small_bytes

    @property
    def max_record_bytes(self) -> int:
        """The largest record that can ever be held: half of all segments."""
        layout = self.buffer.layout
        return min(MAX_RECORD_BYTES, layout.segment_count // 2 * layout.segment_bytes)

    # --- what is emitted ---------------------------------------------------------------------

    def roll(self) -> bool:
        """Close the open segment and open the next; False when none can be had."""
        self._clean()
        if not self._free and not self._evict():
            return False
        at, seq = self.tail
        index = self._free[-1]
        self._half_open = (index,)
        self.buffer.open(index, SMALL, seq + 1)
        segment = Segment(index, seq + 1)
        base, word = self.buffer.base(index), self.buffer.used_word(index)
        current = self.segments[-1] if self.segments else segment
        used = at - self.base
        nbytes = used - STUB.size * len(current.stub_seqs)
        # All or nothing:
        current.last_seq = seq
        current.used = used
        self.segments += [segment]
        self.base = base
        self.limit = base + self.segment_bytes
        self.used_word = word
        self.tail = (base, seq)
        del self._free[-1]
        self._half_open = ()
        self._stored_bytes += nbytes
        return True

    def put(self, total: int, pieces: Iterable[Piece]) -> bool:
        """Append an encoded record of `total` bytes; False when there is no room for it."""
        if total > self.max_small_bytes:
            return self._put_large(total, pieces)
        if self.tail[0] + total > self.limit and not self.roll():
            return False
        at, seq = self.tail
        end = at
        for piece in pieces:
            view = memoryview(piece).cast("B")
            self.memory[end : end + len(view)] = view
            end += len(view)
        # All or nothing:
        self.table[self.used_word] = end - self.base
        self.tail = (end, seq + 1)
        return True

    def has_room(self, nbytes: int) -> bool:
        """Whether a record of `nbytes` could be appended without dropping anything."""
        if nbytes <= self.limit - self.tail[0]:
            return True
        needed = 1 if nbytes <= self.max_small_bytes else self._pieces_of(nbytes) + 1
        return len(self._free) >= needed

    def _put_large(self, total: int, pieces: Iterable[Piece]) -> bool:
        self._clean()
        count = self._pieces_of(total)
        stub_fits = self.tail[0] + STUB.size <= self.limit
        needed = count if stub_fits else count + 1
        # A payload may push out older payloads, but never numbers.
        if len(self._free) < needed:
            evictable = (len(old.pieces) for old in self.larges.values() if old.seq > self.sent_seq)
            if len(self._free) + sum(evictable) < needed:
                return False
            while len(self._free) < needed:
                self._evict_large()
        if not stub_fits:
            self.roll()
        at, seq = self.tail
        indices = tuple(self._free[-count:])
        self._half_open = indices
        self._copy_over(indices, pieces)
        for number, index in enumerate(indices):
            used = min(self.segment_bytes, total - number * self.segment_bytes)
            self.buffer.open(index, PIECE, seq + 1, used, number)
        STUB.pack_into(self.memory, at, STUB.size, LARGE, 0, 0, total)
        large = Large(seq + 1, total, indices, at)
        segment = self.segments[-1]
        stub_seq = array(OFFSETS, [seq + 1 - segment.first_seq])
        stub_offset = array(OFFSETS, [at - self.base])
        end = at + STUB.size
        # All or nothing:
        self.table[self.used_word] = end - self.base
        self.tail = (end, seq + 1)
        self.larges[seq + 1] = large
        segment.stub_seqs += stub_seq
        segment.stub_offsets += stub_offset
        del self._free[-count:]
        self._half_open = ()
        self._stored_bytes += total
        return True

    def _copy_over(self, indices: Sequence[int], pieces: Iterable[Piece]) -> None:
        """Copy pieces one after the other into segments that need not be neighbours."""
        size = self.segment_bytes
        offset = 0
        for piece in pieces:
            view = memoryview(piece).cast("B")
            done = 0
            while done < len(view):
                at = offset % size
                n = min(size - at, len(view) - done)
                base = self.buffer.base(indices[offset // size]) + at
                self.memory[base : base + n] = view[done : done + n]
                done += n
                offset += n

    # --- making room -------------------------------------------------------------------------

    def _evict(self) -> bool:
        """Make room: the oldest large payload first, then the oldest small records."""
        return self._evict_large() or self._evict_small()

    def _evict_large(self) -> bool:
        for large in self.larges.values():
            if large.seq > self.sent_seq:
                self._drop_large(large)
                return True
        return False

    def _drop_large(self, large: Large) -> None:
        self._clean()
        # All or nothing (the first line is `OutboxBuffer.drop`, without the call):
        self.memory[large.stub_at + _KIND_AT] = DROPPED
        del self.larges[large.seq]
        self._free += large.pieces
        self._half_open = large.pieces
        self._dropped += 1
        self._dropped_bytes += large.total
        self._clean()

    def _evict_small(self) -> bool:
        position = bisect_right(self.segments, self.sent_seq, key=_first_seq)
        if position >= len(self.segments) - 1:
            return False  # the last one is open: the newest records
        segment = self.segments[position]
        # Its large records have gone before it, and were counted then.
        stubs = len(segment.stub_seqs)
        holes = self.holes.adding(segment.first_seq, segment.last_seq, FULL)
        state = self.buffer.used_word(segment.index) + _STATE
        # All or nothing (the first line is `OutboxBuffer.free`, without the call):
        self.table[state] = FREE
        del self.segments[position]
        self._free += (segment.index,)
        self.holes = holes
        self._dropped += segment.last_seq - segment.first_seq + 1 - stubs
        self._dropped_bytes += segment.used - STUB.size * stubs
        return True

    def _clean(self) -> None:
        """See that the table says of free segments that they are free."""
        for index in self._half_open:
            self.buffer.free(index)
        self._half_open = ()

    # --- what becomes of it ------------------------------------------------------------------

    def mark_sent(self, last_seq: int) -> None:
        """Records up to `last_seq` go out: they are not pushed out any more."""
        self.sent_seq = max(self.sent_seq, last_seq)

    def release(self, durable_seq: int, dropped: int) -> None:
        """Everything up to `durable_seq` is with the daemon: give its memory back.

        Args:
            durable_seq: the record.
            dropped: how many records up to there were dropped.
        """
        durable_seq = min(durable_seq, self.tail[1])
        self.acked_seq, self._acked_dropped = durable_seq, dropped
        # In this order: whoever adopts the outbox may find few of them dropped, never too many.
        self.buffer.words[ACKED_SEQ] = durable_seq
        self.buffer.words[ACKED_DROPPED] = dropped
        while len(self.segments) > 1 and self.segments[0].last_seq <= durable_seq:
            segment = self.segments.pop(0)
            self._count_acked(segment, segment.used)
            self._give_back(segment.index)
        segment = self.segments[0]
        if segment.first_seq <= durable_seq:
            self._count_acked(segment, self.offset(segment, durable_seq + 1))
        for seq in [seq for seq in self.larges if seq <= durable_seq]:
            large = self.larges.pop(seq)
            self._acked_bytes += large.total
            for index in large.pieces:
                self._give_back(index)
        self.holes = self.holes.since(durable_seq + 1)

    def refuse(self, first_seq: int, last_seq: int, reason: str) -> None:
        """The daemon can never take these records: they are dropped, and announced as a hole."""
        first_seq = max(first_seq, self.acked_seq + 1)
        last_seq = min(last_seq, self.tail[1])
        for first, last in self.holes.between(first_seq, last_seq):
            for segment in self.segments:
                low = max(first, segment.first_seq)
                high = min(last, self.end(segment)[0])
                if low <= high:
                    self._refuse(segment, low, high)
        if first_seq <= last_seq:
            self.holes = self.holes.adding(first_seq, last_seq, reason)

    def _refuse(self, segment: Segment, first_seq: int, last_seq: int) -> None:
        start, end = self.offset(segment, first_seq), self.offset(segment, last_seq + 1)
        stubs = segment.stubs_before(end) - segment.stubs_before(start)
        nbytes = end - start - STUB.size * stubs
        segment.mark(last_seq + 1, end)
        segment.refused.append((last_seq, nbytes))
        self._dropped += last_seq - first_seq + 1 - stubs
        self._dropped_bytes += nbytes
        for large in [x for x in self.larges.values() if first_seq <= x.seq <= last_seq]:
            self._drop_large(large)

    # --- books -------------------------------------------------------------------------------

    def totals(self, lost: int, lost_bytes: int) -> Totals:
        """The books, with `lost` records of `lost_bytes` that never came here."""
        last_seq = self.tail[1]
        unacked_drops = min(self._dropped - self._acked_dropped, last_seq - self.acked_seq)
        held = last_seq - self.acked_seq - max(0, unacked_drops)
        dropped = self._dropped + lost
        open_bytes = self.tail[0] - self.base - STUB.size * len(self.segments[-1].stub_seqs)
        emitted_bytes = self._stored_bytes + open_bytes
        return Totals(
            emitted=last_seq + lost,
            acked=last_seq - held - self._dropped,
            held=held,
            dropped=dropped,
            emitted_bytes=emitted_bytes + lost_bytes,
            acked_bytes=self._acked_bytes,
            held_bytes=emitted_bytes - self._acked_bytes - self._dropped_bytes,
            dropped_bytes=self._dropped_bytes + lost_bytes,
        )

    def _count_acked(self, segment: Segment, end: int) -> None:
        """Count what lies before `end` in the oldest segment."""
        nbytes = end - STUB.size * segment.stubs_before(end) - segment.refused_bytes(self.acked_seq)
        self._acked_bytes += nbytes - segment.acked_bytes
        segment.acked_bytes = nbytes

    # --- places ------------------------------------------------------------------------------

    def end(self, segment: Segment) -> tuple[int, int]:
        """The last record of a segment, and where it ends."""
        if segment is self.segments[-1]:
            return self.tail[1], self.tail[0] - self.base
        return segment.last_seq, segment.used

    def offset(self, segment: Segment, seq: int) -> int:
        """Where record `seq` begins in its segment, or where the one before it ends."""
        known, offset = segment.place(seq)
        base = self.buffer.base(segment.index)
        while known < seq:
            offset += HEADER.unpack_from(self.memory, base + offset)[0]
            known += 1
        return offset

    def _pieces_of(self, total: int) -> int:
        return -(-total // self.segment_bytes)

    def _give_back(self, index: int) -> None:
        self.buffer.free(index)
        self._free.append(index)

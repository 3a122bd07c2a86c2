"""One segment of small records as the client remembers it: where in it which record begins."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Final

from sidestep.proto.segments import STUB

OFFSETS: Final = "I"
"""Type of the arrays of stubs: a segment can hold thousands, so they are kept small."""


@dataclass(frozen=True, slots=True)
class Large:
    """One record of `total` bytes, which lies in segments of its own.

    Attributes:
        seq: its number.
        total: its size in bytes.
        pieces: the segments, in order.
        stub_at: where in memory the stub lies that stands for it.
    """

    seq: int
    total: int
    pieces: tuple[int, ...]
    stub_at: int


class Segment:
    """Records `first_seq`, `first_seq + 1`, ... one after the other.

    It knows the beginning of some records: of the first, of those at which a slice was cut, and
    of the stubs (16 bytes that stand for a large record, or for one that was dropped) and what
    follows them.

    Attributes:
        index: which segment of the outbox it is.
        first_seq: number of its first record.
        last_seq: number of its last record; valid when it is closed.
        used: bytes in it; valid when it is closed.
        acked_bytes: bytes at its beginning that were counted as acknowledged.
        refused: for each range that the daemon refused: its last record and its bytes.
        stub_seqs: numbers of the stubs, less `first_seq`.
        stub_offsets: where they lie.
    """

    __slots__ = (
        "_mark_offsets",
        "_mark_seqs",
        "acked_bytes",
        "first_seq",
        "index",
        "last_seq",
        "refused",
        "stub_offsets",
        "stub_seqs",
        "used",
    )

    def __init__(self, index: int, first_seq: int) -> None:
        self.index = index
        self.first_seq = first_seq
        self.last_seq = 0
        self.used = 0
        self.acked_bytes = 0
        self.refused: list[tuple[int, int]] = []
        self.stub_seqs = array(OFFSETS)
        self.stub_offsets = array(OFFSETS)
        self._mark_seqs = [first_seq]
        self._mark_offsets = [0]

    def mark(self, seq: int, offset: int) -> None:
        """Remember where record `seq` begins, so that sending can start there."""
        at = bisect_left(self._mark_seqs, seq)
        if at == len(self._mark_seqs) or self._mark_seqs[at] != seq:
            self._mark_seqs.insert(at, seq)
            self._mark_offsets.insert(at, offset)

    def place(self, seq: int) -> tuple[int, int]:
        """The last record up to `seq` whose beginning is known, and that beginning."""
        at = bisect_right(self._mark_seqs, seq) - 1
        known = self._mark_seqs[at], self._mark_offsets[at]
        stub = bisect_right(self.stub_seqs, seq - self.first_seq) - 1
        if stub >= 0:
            stub_seq, offset = self.first_seq + self.stub_seqs[stub], self.stub_offsets[stub]
            if stub_seq < seq:
                stub_seq, offset = stub_seq + 1, offset + STUB.size
            known = max(known, (stub_seq, offset))
        return known

    def stub_from(self, offset: int) -> tuple[int, int] | None:
        """The first stub at `offset` or after it: its number and its offset."""
        at = bisect_left(self.stub_offsets, offset)
        if at == len(self.stub_offsets):
            return None
        return self.first_seq + self.stub_seqs[at], self.stub_offsets[at]

    def stubs_before(self, offset: int) -> int:
        """How many stubs lie before `offset`."""
        return bisect_left(self.stub_offsets, offset)

    def refused_bytes(self, last_seq: int) -> int:
        """Bytes of refused records up to `last_seq`."""
        return sum(nbytes for seq, nbytes in self.refused if seq <= last_seq)

"""The records that will never be sent: sorted ranges of numbers, each with its reason."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

_first = attrgetter("first_seq")


@dataclass(frozen=True, slots=True)
class Hole:
    """Records `first_seq` to `last_seq` were dropped."""

    first_seq: int
    last_seq: int
    reason: str


class Holes:
    """Disjoint holes in order. Immutable: a change makes new ones, so that it is one store.

    There are few: neighbours with one reason are joined, and between two of them lies at least
    one record that is held.
    """

    __slots__ = ("_holes",)

    def __init__(self, holes: tuple[Hole, ...] = ()) -> None:
        self._holes = holes

    def __iter__(self) -> Iterator[Hole]:
        return iter(self._holes)

    def at(self, seq: int) -> Hole | None:
        """The hole that record `seq` lies in."""
        index = bisect_right(self._holes, seq, key=_first) - 1
        if index >= 0 and seq <= self._holes[index].last_seq:
            return self._holes[index]
        return None

    def after(self, seq: int) -> Hole | None:
        """The first hole that begins after record `seq`."""
        index = bisect_right(self._holes, seq, key=_first)
        return self._holes[index] if index < len(self._holes) else None

    def between(self, first_seq: int, last_seq: int) -> list[tuple[int, int]]:
        """What of `first_seq` to `last_seq` lies in no hole, as ranges in order."""
        ranges: list[tuple[int, int]] = []
        for hole in self._holes:
            if hole.last_seq >= first_seq and hole.first_seq <= last_seq:
                if hole.first_seq > first_seq:
                    ranges.append((first_seq, hole.first_seq - 1))
                first_seq = hole.last_seq + 1
        if first_seq <= last_seq:
            ranges.append((first_seq, last_seq))
        return ranges

    def adding(self, first_seq: int, last_seq: int, reason: str) -> Holes:
        """These and one more; it covers what it overlaps."""
        low = bisect_left(self._holes, first_seq, key=_first)
        if low and self._holes[low - 1].last_seq >= first_seq - 1:
            low -= 1  # it reaches into the new one, or up to it
        high = bisect_right(self._holes, last_seq + 1, key=_first)
        touched = self._holes[low:high]
        same = [hole for hole in touched if hole.reason == reason]
        first = min([first_seq, *(hole.first_seq for hole in same)])
        last = max([last_seq, *(hole.last_seq for hole in same)])
        before = [
            Hole(hole.first_seq, min(hole.last_seq, first - 1), hole.reason)
            for hole in touched
            if hole.first_seq < first
        ]
        after = [
            Hole(max(hole.first_seq, last + 1), hole.last_seq, hole.reason)
            for hole in touched
            if hole.last_seq > last
        ]
        merged = Hole(first, last, reason)
        return Holes((*self._holes[:low], *before, merged, *after, *self._holes[high:]))

    def since(self, seq: int) -> Holes:
        """Those that do not end before record `seq`."""
        return Holes(tuple(hole for hole in self._holes if hole.last_seq >= seq))

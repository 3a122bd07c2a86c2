"""Who of a job's ranks can still speak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..ingest.worlds import Member


class World:
    """The ranks of one attempt at a run, and who of them can still speak."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.absent: set[int] = set()  # never came, and are not waited for any more
        self.here: frozenset[int] = frozenset()
        self.gone: frozenset[int] = frozenset()
        self.ended_s: float | None = None  # when the last one had left

    def see(self, members: Sequence[Member], now_s: float) -> None:
        """How its members are now."""
        known = {m.rank for m in members}
        self.here = frozenset(m.rank for m in members if not m.gone)
        self.gone = frozenset(known) - self.here
        self.absent -= known
        if self.here:
            self.ended_s = None
        elif self.ended_s is None:
            self.ended_s = now_s

    def excuses(self, spoken: Mapping[int, object]) -> bool:
        """Whether all ranks that have not spoken have gone, or are not waited for."""
        if len(spoken) + len(self.gone) + len(self.absent) < self.size:
            return False
        rest = (rank for rank in range(self.size) if rank not in spoken)
        return all(rank in self.gone or rank in self.absent for rank in rest)

    def give_up(self, spoken: Mapping[int, object]) -> None:
        """Wait no more for ranks that were never there."""
        known = (*spoken, *self.here, *self.gone)
        self.absent |= set(range(self.size)).difference(known)

    def is_over(self, grace_s: float, now_s: float) -> bool:
        """Whether nobody can come any more."""
        if self.ended_s is None:
            return False
        whole = len(self.gone) + len(self.absent) >= self.size
        return whole or now_s - self.ended_s >= grace_s

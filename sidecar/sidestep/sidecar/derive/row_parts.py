"""Which parts of a journal row are still awaited, and the row while they are taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..ingest.worlds import Member
from .world import World


class RowParts:
    """Which parts of a journal row are still awaited by something.

    Attributes:
        row: the journal's row.
        left: how many.
    """

    __slots__ = ("_packed", "flags", "left", "row")

    def __init__(self, row: int) -> None:
        self.row = row
        self.flags = bytearray()
        self.left = 0
        self._packed: tuple[int, object] = (-1, None)

    def extend(self, many: int, wanted: Callable[[int], bool] | None) -> bytes:
        """So many further parts; of those that are wanted (all by default) the flags are 1."""
        if wanted is None:
            flags = b"\1" * many
            self.left += many
        else:
            flags = bytes(map(wanted, range(len(self.flags), len(self.flags) + many)))
            self.left += flags.count(1)
        self.flags += flags
        return flags

    def drop(self, at: int, many: int = 1) -> None:
        """The parts from `at` on, which were awaited, are done with."""
        self.flags[at : at + many] = bytes(many)
        self.left -= many

    def packed(self) -> object:
        """As it is stored: None for all, else spans of them, [first, last + 1, ...]."""
        if self.left == len(self.flags):
            return None
        if self._packed[0] != self.left:  # what is dropped never comes back
            spans: list[int] = []
            at = self.flags.find(1)
            while at >= 0:
                end = self.flags.find(0, at)
                spans += [at, end if end >= 0 else len(self.flags)]
                at = self.flags.find(1, end) if end >= 0 else -1
            self._packed = self.left, spans
        return self._packed[1]


@dataclass(frozen=True, slots=True)
class RowReading:
    """A journal row while its parts are taken.

    Attributes:
        parts: those that were counted so far.
        wanted: whether something of a place in it is still awaited; None for all.
        member: whose it is.
        world: of which world.
        now_s: monotonic.
    """

    parts: RowParts
    wanted: Callable[[int], bool] | None
    member: Member
    world: World
    now_s: float


def places_in(spans: list[int] | None) -> Callable[[int], bool] | None:
    """Whether a place lies in one of the spans; None for everywhere."""
    if spans is None:
        return None
    pairs = list(zip(spans[::2], spans[1::2], strict=True))
    return lambda at: any(first <= at < end for first, end in pairs)

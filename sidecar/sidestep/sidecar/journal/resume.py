"""The rule for a run that goes on from a checkpoint: what TensorBoard shall hide, and from where.

A trainer that was restarted emits steps again that an earlier one emitted already, and its curves
would double back. A purge (TensorBoard's ``SessionLog.START``) at the step where it begins hides
what is in the file of that step and later ones, *of all tags of the run*. So to purge too little
leaves a curve that can be read, and to purge too much hides what is true. Hence:

- The *lead* is the set of tags that was emitted together most often by any one of the clients that
  were there before: a training loop's, since it runs more often than any evaluation.
- A new client *repeats* the lead with its first record that has more than half of the lead's tags.
  That record alone decides. Who never emits such a record (a script that evaluates a checkpoint)
  never purges.
- It purges if that record's step is below the furthest step to which earlier clients took the
  lead. A step that is equal, or further, goes on where the curve ends.
- It purges from that step on, or from the first step after all that living clients (itself with
  what came before, other ranks) have emitted already: nobody's news are hidden.

Pure: what each client did is in its `Trail`; who asks, and what becomes of the answer, is in
`attempts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

import msgpack

Stretch = tuple[int, int, int, int]
"""Tag set (-1: a value), records, step of the first and furthest step of like records in a row."""

_STORED_CURVES: Final = 16
"""Of a client's tag sets those with the most records are stored: the lead is among them."""

_FIRST_STEP: Final = -(1 << 63)

_MAX_CURVES: Final = 1000
"""Of a client with more tag sets the rest is not looked at: none of it leads."""


@dataclass(slots=True)
class Curve:
    """What a client emitted under one tag set: how many records, and to which step."""

    records: int
    furthest: int


@dataclass(slots=True)
class Trail:
    """What a client has emitted, as far as it matters to those that come after it.

    Attributes:
        attempt: which attempt at its run the client belongs to, counted from 1; 0 while unknown.
        settled: whether it has repeated the lead, or cannot: it will not purge any more.
        resumed: whether it goes on with what clients before it had begun.
        front: the furthest step of all its records; None while there is none.
        curves: by tag set, in the order of their first records.
        changed: whether it must be stored.
    """

    attempt: int = 0
    settled: bool = False
    resumed: bool = False
    front: int | None = None
    curves: dict[int, Curve] = field(default_factory=dict[int, Curve])
    changed: bool = True

    def take(self, stretches: Iterable[Stretch]) -> None:
        """Records were journalled."""
        for tag_set, records, _first, furthest in stretches:
            self.changed = True
            self.front = furthest if self.front is None else max(self.front, furthest)
            if tag_set < 0:
                continue
            curve = self.curves.get(tag_set)
            if curve is not None:
                curve.records += records
                curve.furthest = max(curve.furthest, furthest)
            elif len(self.curves) < _MAX_CURVES:
                self.curves[tag_set] = Curve(records, furthest)

    def cut(self, step: int) -> None:
        """What it has of `step` and later ones is hidden."""
        if self.front is None or self.front < step:
            return
        last = max(step - 1, _FIRST_STEP)
        self.changed = True
        self.front = last
        for curve in self.curves.values():
            curve.furthest = min(curve.furthest, last)

    def packed(self) -> bytes:
        """As it is stored."""
        stored = [(i, c.records, c.furthest) for i, c in self.curves.items()]
        if len(stored) > _STORED_CURVES:
            most = sorted(self.curves, key=lambda one: -self.curves[one].records)
            kept = frozenset(most[:_STORED_CURVES])
            stored = [curve for curve in stored if curve[0] in kept]
        head = (self.attempt, self.settled, self.resumed, self.front)
        return cast("bytes", msgpack.packb([*head, stored]))


def unpacked(data: bytes) -> Trail:
    """A trail as it was stored."""
    attempt, settled, resumed, front, curves = msgpack.unpackb(data)
    found = {int(i): Curve(records, furthest) for i, records, furthest in curves}
    return Trail(attempt, settled, resumed, front, found, changed=False)


def lead(trails: Sequence[Trail]) -> tuple[int, int] | None:
    """Which of `trails` has the lead, and its tag set there; the first of equals; None of none."""
    best: tuple[int, int] | None = None
    most = 0
    for number, trail in enumerate(trails):
        for tag_set, curve in trail.curves.items():
            if curve.records > most:
                best, most = (number, tag_set), curve.records
    return best


def repeats(tags: Sequence[str], leading: frozenset[str]) -> bool:
    """Whether `tags` are the lead's: more than half of these are among them."""
    return 2 * len(leading.intersection(tags)) > len(leading)


def purge_step(first: int, reached: int, fronts: Iterable[int | None]) -> int | None:
    """From which step on the past is to be hidden; None when it is not.

    Args:
        first: the step of the first record that repeats the lead.
        reached: the furthest step to which earlier clients took the lead.
        fronts: the furthest steps of living clients; None of one that has emitted nothing.
    """
    if first >= reached:
        return None
    step = max([first, *(front + 1 for front in fronts if front is not None)])
    return step if step <= reached else None


def further(trail: Trail, step: int) -> Iterator[tuple[int, int]]:
    """The tag sets of a trail that went further than `step`, with how far."""
    return ((i, curve.furthest) for i, curve in trail.curves.items() if curve.furthest > step)

"""What is awaited: for each tag and step a round, in which each rank of a world speaks once.

A rank that speaks twice of one step opens a second round, which the others' second words join. A
round that was shown without a rank is remembered, as a span of steps, so that this rank's late word
is known as such and not shown as a round of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Final, NamedTuple, cast

from .row_parts import RowParts

_SPANS: Final = 64
"""Of a tag; the oldest are forgotten."""


class Channel(NamedTuple):
    """What rounds of different steps have in common.

    Attributes:
        world: of which ranks.
        what: a reduction of numbers, or "=" and a kind of value.
        tag: the tag.
    """

    world: int
    what: str
    tag: str


class Round:
    """What some ranks have said of one tag at one step.

    Attributes:
        parts: by rank, a number; or None where `gathering` has it, or it was not good.
        good: how many of them are.
        places: the parts' rows, and their places in them.
        time_ns: the latest wall time.
        began_s: when the first part was read, monotonic.
        gathering: of values that are no numbers.
    """

    __slots__ = ("began_s", "gathering", "good", "parts", "places", "time_ns")

    def __init__(self, began_s: float) -> None:
        self.parts: dict[int, float | None] = {}
        self.good = 0
        self.places: list[tuple[RowParts, int]] = []
        self.time_ns = 0
        self.began_s = began_s
        self.gathering: Any = None


@dataclass(slots=True)
class Counts:
    """What became of reductions so far.

    Attributes:
        partial: values that were shown without all ranks.
        late: parts that came after their value had been shown, and are not.
        pushed_out: values that were shown early, since too much was awaited.
    """

    partial: int = 0
    late: int = 0
    pushed_out: int = 0


class Spans:
    """Steps that were shown without some ranks, by channel."""

    def __init__(self, stored: object = None) -> None:
        """Begin with what `packed` returned; anything else is none."""
        self._spans: dict[Channel, list[tuple[int, int, frozenset[int], bool]]] = {}
        for world, what, tag, spans in cast("list[Any]", stored or []):
            self._spans[Channel(world, what, tag)] = [
                (first, last, _ranks_in(tuple(missing)), is_open)
                for first, last, missing, is_open in spans
            ]
        self._missed = self._all_missed()

    def __bool__(self) -> bool:
        return bool(self._spans)

    def packed(self) -> list[object]:
        """As it is stored."""
        return [
            [
                *channel,
                [[first, last, _ranges(missing), is_open] for first, last, missing, is_open in s],
            ]
            for channel, s in self._spans.items()
        ]

    def may_miss(self, world: int, rank: int) -> bool:
        """Whether anything was shown without this rank; also what is forgotten."""
        return (world, rank) in self._missed

    def is_late(self, channel: Channel, step: int, rank: int) -> bool:
        """Whether the round of a part was shown without it."""
        return any(
            first <= step <= last and rank in missing
            for first, last, missing, _ in self._spans.get(channel, ())
        )

    def partial(self, channel: Channel, step: int, missing: frozenset[int]) -> None:
        """A round was shown without some ranks."""
        if not missing:
            return
        spans = self._spans.setdefault(channel, [])
        if spans:
            first, last, without, is_open = spans[-1]
            if is_open and without == missing and step >= last:
                spans[-1] = first, step, without, True
                return
        spans.append((step, step, missing, True))
        del spans[:-_SPANS]
        self._missed.update((channel.world, rank) for rank in missing)

    def whole(self, channel: Channel, step: int) -> None:
        """A round was shown with all ranks: steps from here on are of another span."""
        spans = self._spans.get(channel)
        if spans and spans[-1][3] and step > spans[-1][1]:
            spans[-1] = (*spans[-1][:3], False)

    def forget(self, worlds: frozenset[int]) -> None:
        """Of these worlds nobody is left."""
        for channel in [channel for channel in self._spans if channel.world in worlds]:
            del self._spans[channel]
        self._missed = self._all_missed()

    def _all_missed(self) -> set[tuple[int, int]]:
        return {
            (channel.world, rank)
            for channel, spans in self._spans.items()
            for _, _, missing, _ in spans
            for rank in missing
        }


@lru_cache(maxsize=64)
def _ranges(ranks: frozenset[int]) -> tuple[int, ...]:
    """Ranks as (first, last + 1, ...): nearly all of a large world may be missing, for each tag."""
    found: list[int] = []
    for rank in sorted(ranks):
        if found and found[-1] == rank:
            found[-1] += 1
        else:
            found += [rank, rank + 1]
    return tuple(found)


@lru_cache(maxsize=64)
def _ranks_in(ranges: tuple[int, ...]) -> frozenset[int]:
    return frozenset(chain.from_iterable(map(range, ranges[::2], ranges[1::2])))


class Rounds:
    """All that is awaited of a run.

    Attributes:
        many: parts in open rounds.
        nbytes: of those that are no numbers.
    """

    def __init__(self) -> None:
        self._open: dict[Channel, dict[int, list[Round]]] = {}
        self.many = 0
        self.nbytes = 0

    def __bool__(self) -> bool:
        return self.many > 0

    def of(self, channel: Channel) -> dict[int, list[Round]]:
        """The open rounds of a channel by their steps."""
        found = self._open.get(channel)
        if found is None:
            found = self._open[channel] = {}
        return found

    def join(self, steps: dict[int, list[Round]], step: int, rank: int, now_s: float) -> Round:
        """The round in which a rank speaks next; a new one if need be."""
        rounds = steps.get(step)
        if rounds is None:
            steps[step] = [one := Round(now_s)]
            return one
        for one in rounds:
            if rank not in one.parts:
                return one
        rounds.append(one := Round(now_s))
        return one

    def close(self, steps: dict[int, list[Round]], step: int, one: Round) -> None:
        """A round is shown: nothing of it is awaited any more."""
        rounds = steps[step]
        if len(rounds) == 1:
            del steps[step]
        else:
            rounds.remove(one)
        self.many -= len(one.parts)
        if one.gathering is not None:
            self.nbytes -= one.gathering.nbytes
        for row, at in one.places:
            row.drop(at)

    def all(self) -> Iterator[tuple[Channel, int, Round]]:
        """All open rounds, of a channel in the order in which they were opened."""
        for channel, steps in list(self._open.items()):
            for step, rounds in list(steps.items()):
                for one in list(rounds):
                    yield channel, step, one

    def forget(self, worlds: frozenset[int]) -> None:
        """Of these worlds nobody is left, and nothing is open."""
        for channel in [channel for channel in self._open if channel.world in worlds]:
            if not self._open[channel]:
                del self._open[channel]

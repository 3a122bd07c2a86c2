"""Rounds of whole records: what is awaited while the ranks emit the same tags together.

That is what a training loop does, and it costs a record little: its numbers are kept as they are,
and looked at when the last rank has spoken. A group of tags goes its own ways for good, each tag
with rounds of its own (see `rounds`), as soon as one of them is met in another tag set, or of a
record something is awaited and something is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from .reduced_numbers import reduced_columns
from .rounds import Channel, Round, Rounds
from .row_parts import RowParts

_PART_BYTES: Final = 300
"""What a rank's part of a record takes beside its numbers and flags, about."""


class Record:
    """What some ranks have said of a group's tags at one step.

    Attributes:
        parts: by rank, its numbers as float64.
        places: the parts' rows, and the places of their first numbers in them.
        time_ns: the latest wall time.
        began_s: when the first part was read, monotonic.
    """

    __slots__ = ("began_s", "parts", "places", "time_ns")

    def __init__(self, began_s: float) -> None:
        self.parts: dict[int, bytes] = {}
        self.places: list[tuple[RowParts, int]] = []
        self.time_ns = 0
        self.began_s = began_s


class Group:
    """Tags that have only been met together.

    Attributes:
        channels: one of each tag.
        part_bytes: about how much memory what one rank says of a step takes.
        steps: the open records.
    """

    def __init__(self, world: int, what: str, tags: Sequence[str]) -> None:
        self.world = world
        self.what = what
        self.tags = tags
        self.channels = [Channel(world, what, tag) for tag in tags]
        self.part_bytes = 9 * len(tags) + _PART_BYTES
        self.steps: dict[int, list[Record]] = {}

    def join(self, step: int, rank: int, now_s: float) -> Record:
        """The record in which a rank speaks next; a new one if need be."""
        records = self.steps.get(step)
        if records is None:
            self.steps[step] = [one := Record(now_s)]
            return one
        for one in records:
            if rank not in one.parts:
                return one
        records.append(one := Record(now_s))
        return one

    def table(self, one: Record) -> npt.NDArray[np.float64]:
        """The numbers that were said, shape (ranks that spoke, tags)."""
        return np.frombuffer(b"".join(one.parts.values())).reshape(-1, len(self.tags))

    def shown(self, one: Record) -> dict[str, float]:
        """What is made of a record, by whole tags."""
        columns = reduced_columns(self.what, self.table(one))
        if len(columns) == 1:
            return dict(zip(self.tags, columns[""], strict=True))
        return {
            tag + suffix: numbers[n]
            for n, tag in enumerate(self.tags)
            for suffix, numbers in columns.items()
        }


class Records:
    """All groups of a run.

    Args:
        rounds: where tags go that go their own ways.

    Attributes:
        many: numbers in open records.
        nbytes: about how much memory they take.
    """

    def __init__(self, rounds: Rounds) -> None:
        self._rounds = rounds
        self._groups: dict[tuple[int, str, Sequence[str]], Group] = {}
        self._owners: dict[Channel, Group | None] = {}  # None: it goes its own way
        self.many = 0
        self.nbytes = 0

    def group(self, world: int, what: str, tags: Sequence[str]) -> Group | None:
        """The group of these tags; None when each of them goes its own way."""
        found = self._groups.get((world, what, tags))
        if found is not None:
            return found
        made = Group(world, what, tags)
        if not any(channel in self._owners for channel in made.channels):
            self._groups[world, what, tags] = made
            self._owners.update(dict.fromkeys(made.channels, made))
            return made
        for channel in made.channels:
            owner = self._owners.get(channel)
            if owner is not None:
                self.part(owner)
            self._owners[channel] = None
        return None

    def part(self, group: Group) -> None:
        """Its tags go their own ways from now on."""
        del self._groups[group.world, group.what, group.tags]
        self._owners.update(dict.fromkeys(group.channels))
        for step, records in group.steps.items():
            for one in records:
                ranks, table = list(one.parts), group.table(one)
                self.many -= table.size
                self.nbytes -= len(ranks) * group.part_bytes
                self._rounds.many += table.size
                for column, channel in enumerate(group.channels):
                    alone = Round(one.began_s)
                    alone.parts.update(zip(ranks, table[:, column].tolist(), strict=True))
                    alone.good = len(ranks)
                    alone.places = [(row, at + column) for row, at in one.places]
                    alone.time_ns = one.time_ns
                    self._rounds.of(channel).setdefault(step, []).append(alone)
        group.steps.clear()

    def take(
        self, group: Group, one: Record, rank: int, part: bytes, row: RowParts, at: int
    ) -> None:
        """A rank's part of an open record, which is at `at` in its row."""
        one.parts[rank] = part
        one.places.append((row, at))
        self.many += len(group.tags)
        self.nbytes += group.part_bytes

    def close(self, group: Group, step: int, one: Record) -> None:
        """A record is shown: nothing of it is awaited any more."""
        records, width = group.steps[step], len(group.tags)
        if len(records) == 1:
            del group.steps[step]
        else:
            records.remove(one)
        self.many -= len(one.parts) * width
        self.nbytes -= len(one.parts) * group.part_bytes
        for row, at in one.places:
            row.drop(at, width)

    def all(self) -> Iterator[tuple[Group, int, Record]]:
        """All open records, of a group in the order in which they were opened."""
        for group in list(self._groups.values()):
            for step, records in list(group.steps.items()):
                for one in list(records):
                    yield group, step, one

    def forget(self, worlds: frozenset[int]) -> None:
        """Of these worlds nobody is left, and nothing is open."""
        for key, group in list(self._groups.items()):
            if group.world in worlds and not group.steps:
                del self._groups[key]
                for channel in group.channels:
                    del self._owners[channel]

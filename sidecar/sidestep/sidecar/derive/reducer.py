"""Puts together what the ranks of a job say of one tag at one step, without the ranks' waiting.

A value is shown when all ranks of the world have spoken; without those that have gone as soon as
they have; and in any case some seconds after the first has spoken. What is shown without a rank is
marked: under ``TAG_ranks`` stands how many it has. Everything that is awaited can be read again
from the journal: the state that is stored says of which rows which parts are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import msgpack

from sidestep.proto import RemoteProtocolError, Value
from sidestep.proto.limits import MAX_TAGS_PER_RECORD

from ..ingest.worlds import Member
from .deriver import Derived
from .records import Group, Record, Records
from .reduced_numbers import reduced
from .rounds import Channel, Counts, Round, Rounds, Spans
from .row_parts import RowParts, RowReading, places_in
from .world import World

if TYPE_CHECKING:
    from ..rows.points import Points

_GRACE_S: Final = 5.0
"""How long a world that all have left is kept open for ranks that were never there."""

_MAX_PARTS: Final = 500_000
_MAX_BYTES: Final = 256 << 20
"""More is not held: the oldest rounds are shown with what they have."""

_UNKNOWN: Final = Member(0, 0, 1, 0, gone=False)


class Reducer:
    """The reductions of one run.

    Args:
        run_id: the journal's id of the run.
        timeout_s: how long a rank is waited for.
        read_row: the row up to which a process before this one had read.
        stored: what it knew then: `packed`.
        refuse: counts and says what cannot be used.
        say: says something in the log.

    Attributes:
        counts: what became of them so far.
    """

    def __init__(
        self,
        run_id: int,
        timeout_s: float,
        read_row: int,
        stored: bytes,
        refuse: Callable[[str, Exception], None],
        say: Callable[[str], None],
    ) -> None:
        self._run_id = run_id
        self._timeout_s = timeout_s
        self._refuse = refuse
        self._say = say
        self._rounds = Rounds()
        self._records = Records(self._rounds)
        self._rows: dict[int, RowParts] = {}
        self._worlds: dict[int, World] = {}
        self._members: dict[int, Member] = {}
        self._late_told: set[int] = set()
        state: dict[str, Any] = msgpack.unpackb(stored, strict_map_key=False) if stored else {}
        self._awaited: dict[int, list[int] | None] = state.get("rows", {})
        self._resume_to = read_row
        self._spans = Spans(state.get("without"))
        self.counts = Counts(*state.get("counts", ()))

    # --- state -----------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        """Whether something is awaited."""
        return bool(self._rounds) or self._records.many > 0

    def cursor(self, read_row: int) -> int:
        """The row before the oldest one of which something is awaited."""
        oldest = next((row for row, parts in self._rows.items() if parts.left), read_row + 1)
        return min(oldest, min(self._awaited, default=oldest)) - 1

    def packed(self) -> bytes:
        """What a process after this one must know, beside the journal."""
        for row in [row for row, parts in self._rows.items() if not parts.left]:
            del self._rows[row]
        counts = self.counts
        state = {
            "rows": {**self._awaited, **{row: parts.packed() for row, parts in self._rows.items()}},
            "without": self._spans.packed(),
            "counts": [counts.partial, counts.late, counts.pushed_out],
        }
        return cast("bytes", msgpack.packb(state))

    def report(self) -> Mapping[str, int]:
        """For status."""
        counts = self.counts
        return {
            "awaited": self._rounds.many + self._records.many,
            "partial": counts.partial,
            "late": counts.late,
            "pushed_out": counts.pushed_out,
        }

    def read_again(self, row: int) -> bool:
        """Whether a row was read by a process before this one; then only its parts matter."""
        return row <= self._resume_to

    # --- parts -----------------------------------------------------------------------------------

    def knows(self, client_id: int) -> bool:
        """Whether it is known which rank a client is."""
        return client_id in self._members

    def see(self, members: Iterable[Member], now_s: float) -> None:
        """How the run's clients are now."""
        worlds: dict[int, list[Member]] = {}
        for member in members:
            self._members[member.client_id] = member
            worlds.setdefault(member.world, []).append(member)
        for number, found in worlds.items():
            world = self._worlds.setdefault(number, World(found[0].size))
            world.see(found, now_s)

    def take(
        self, row: int, client_id: int, points: Iterable[Points], now_s: float
    ) -> Iterator[Derived]:
        """The parts of a journal row, and the rounds that are complete with them.

        Args:
            row: its number.
            client_id: whose it is.
            points: reduced numbers as blocks, and values; of these those that are parts.
            now_s: monotonic.
        """
        wanted: list[int] | None = None
        if self.read_again(row):
            if row not in self._awaited:
                return
            wanted = self._awaited.pop(row)
        member = self._members.get(client_id, _UNKNOWN)
        world = self._worlds.setdefault(member.world, World(member.size))
        parts = RowParts(row)
        self._rows[row] = parts
        reader = RowReading(parts, places_in(wanted), member, world, now_s)
        for point in points:
            if isinstance(point, Value):
                yield from self._value(reader, point)
            else:
                yield from self._numbers(reader, point)
        if not parts.left:
            self._rows.pop(row, None)
        yield from self._push_out()

    def _numbers(self, row: RowReading, block: Any) -> Iterator[Derived]:
        first = len(row.parts.flags)
        flags = row.parts.extend(block.values.size, row.wanted)
        group = self._records.group(row.member.world, block.tags.reduce, block.tags)
        if group is not None:
            open_ = self._open_numbers(row, group, block, flags)
            if open_ is None or all(many in (0, len(group.tags)) for many in open_):
                yield from self._together(row, group, block, first, open_)
                return
            self._records.part(group)
        yield from self._alone(row, block, first, flags)

    def _open_numbers(
        self, row: RowReading, group: Group, block: Any, flags: bytes
    ) -> Sequence[int] | None:
        """How many numbers of each record are awaited and not late; None for all of all."""
        rank, width = row.member.rank, len(group.tags)
        may_be_late = self._spans.may_miss(group.world, rank)
        if not may_be_late and 0 not in flags:
            return None
        found: list[int] = []
        for number, step in enumerate(block.steps.tolist()):
            wanted = flags[number * width : (number + 1) * width]
            found.append(
                sum(
                    is_wanted and not self._spans.is_late(channel, step, rank)
                    for is_wanted, channel in zip(wanted, group.channels, strict=True)
                )
                if may_be_late
                else wanted.count(1)
            )
        return found

    def _together(
        self, row: RowReading, group: Group, block: Any, first: int, open_: Sequence[int] | None
    ) -> Iterator[Derived]:
        """Records of tags that are met together alone: of each all numbers, or none."""
        rank, size, width = row.member.rank, row.world.size, len(group.tags)
        data, times = block.values.tobytes(), block.times_ns.tolist()
        for number, step in enumerate(block.steps.tolist()):
            at = first + number * width
            if open_ is not None and not open_[number]:
                for place, channel in enumerate(group.channels, at):
                    if row.parts.flags[place]:
                        self._is_late(channel, step, rank, row, place)
                continue
            one = group.join(step, rank, row.now_s)
            part = data[8 * width * number : 8 * width * (number + 1)]
            self._records.take(group, one, rank, part, row.parts, at)
            one.time_ns = max(one.time_ns, times[number])
            if len(one.parts) >= size:
                self._records.close(group, step, one)
                if self._spans:
                    for channel in group.channels:
                        self._spans.whole(channel, step)
                yield from _records(step, one.time_ns, group.shown(one))

    def _alone(self, row: RowReading, block: Any, first: int, flags: bytes) -> Iterator[Derived]:
        """Records of tags each of which goes its own way."""
        reduce, rank, size = block.tags.reduce, row.member.rank, row.world.size
        channels = [Channel(row.member.world, reduce, tag) for tag in block.tags]
        steps_of = [self._rounds.of(channel) for channel in channels]
        times, place = block.times_ns.tolist(), -1
        for number, step in enumerate(block.steps.tolist()):
            found: dict[str, float] = {}
            time_ns = times[number]
            for channel, steps, value in zip(
                channels, steps_of, block.values[number].tolist(), strict=True
            ):
                place += 1
                at = first + place
                if not flags[place] or self._is_late(channel, step, rank, row, at):
                    continue
                one = self._rounds.join(steps, step, rank, row.now_s)
                one.parts[rank] = value
                one.good += 1
                one.places.append((row.parts, at))
                one.time_ns = max(one.time_ns, time_ns)
                self._rounds.many += 1
                if len(one.parts) >= size:
                    self._rounds.close(steps, step, one)
                    self._spans.whole(channel, step)
                    found |= _shown(channel, one)
                    time_ns = max(time_ns, one.time_ns)
            if found:
                yield from _records(step, time_ns, found)

    def _value(self, row: RowReading, part: Value) -> Iterator[Derived]:
        at = len(row.parts.flags)
        if not row.parts.extend(1, row.wanted)[0]:
            return
        kind, info = part.info.get("kind"), part.info.get("info")
        if not isinstance(kind, str) or not isinstance(info, dict):
            row.parts.drop(at)
            error = RemoteProtocolError("malformed", "a rank's part of nothing")
            self._refuse(f"{part.kind} {part.tag!a:.100} at step {part.step}", error)
            return
        value = Value(
            kind, part.tag, part.step, part.time_ns, cast("dict[str, object]", info), part.arrays
        )
        channel = Channel(row.member.world, f"={kind}", part.tag)
        rank, steps = row.member.rank, self._rounds.of(channel)
        if self._is_late(channel, part.step, rank, row, at):
            return
        one = self._rounds.join(steps, part.step, rank, row.now_s)
        one.parts[rank] = None  # it has spoken, whatever it said
        one.places.append((row.parts, at))
        one.time_ns = max(one.time_ns, part.time_ns)
        self._rounds.many += 1
        before = one.gathering.nbytes if one.gathering is not None else 0
        try:
            if one.gathering is None:
                from .reduced_values import gathering

                one.gathering = gathering(kind)
            one.gathering.add(rank, value)
            one.good += 1
        except Exception as error:  # noqa: BLE001 - it must not be met again and again, for ever
            self._refuse(f"{kind} {part.tag!a:.100} at step {part.step}, rank {rank}", error)
        self._rounds.nbytes += (one.gathering.nbytes if one.gathering is not None else 0) - before
        if len(one.parts) < row.world.size:
            return
        if one.good < row.world.size:
            yield from self._without_some(channel, part.step, one)
            return
        self._rounds.close(steps, part.step, one)
        self._spans.whole(channel, part.step)
        yield from self._finished(channel, part.step, one)

    def _is_late(self, channel: Channel, step: int, rank: int, row: RowReading, at: int) -> bool:
        if not self._spans or not self._spans.is_late(channel, step, rank):
            return False
        row.parts.drop(at)
        self.counts.late += 1
        if rank not in self._late_told:
            self._late_told.add(rank)
            self._say(
                f"rank {rank} spoke of {channel.tag!a:.100} at step {step} when that had been "
                "shown without it: left out and counted, as what follows"
            )
        return True

    # --- rounds without all ranks ----------------------------------------------------------------

    def settle(self, now_s: float) -> Iterator[Derived]:
        """Everything was read: show what nobody is to be waited for any more.

        Args:
            now_s: monotonic, when the members were looked at, before the last rows were read.
        """
        self._awaited.clear()  # a row that is damaged, or has gone
        grace_s = min(self._timeout_s, _GRACE_S)
        over = {n for n, world in self._worlds.items() if world.is_over(grace_s, now_s)}
        for of, step, one in self._all():
            world = self._worlds[of.world]
            if now_s - one.began_s >= self._timeout_s:
                world.give_up(one.parts)
            elif of.world not in over and not world.excuses(one.parts):
                continue
            yield from self._without_some(of, step, one)
        # Of the newest one somebody may come back who was only thought to be lost.
        ended = frozenset(over - {max(over, default=0)})
        if ended:
            self._rounds.forget(ended)
            self._records.forget(ended)
            self._spans.forget(ended)

    def _push_out(self) -> Iterator[Derived]:
        """Show the oldest rounds when more is awaited than memory is to hold."""
        if self._fits(1.0):
            return
        by_age = sorted(self._all(), key=lambda found: (found[2].began_s, found[1]))
        for of, step, one in by_age:
            if self._fits(0.9):
                return
            self.counts.pushed_out += len(of.tags) if isinstance(of, Group) else 1
            yield from self._without_some(of, step, one)

    def _fits(self, share: float) -> bool:
        nbytes = self._rounds.nbytes + self._records.nbytes
        return self._rounds.many <= share * _MAX_PARTS and nbytes <= share * _MAX_BYTES

    def _all(self) -> Iterator[tuple[Group | Channel, int, Record | Round]]:
        yield from self._records.all()
        yield from self._rounds.all()

    def _without_some(
        self, of: Group | Channel, step: int, one: Record | Round
    ) -> Iterator[Derived]:
        size = self._worlds[of.world].size
        missing = frozenset(rank for rank in range(size) if rank not in one.parts)
        channels = of.channels if isinstance(of, Group) else (of,)
        for channel in channels:
            self._spans.partial(channel, step, missing)
        self.counts.partial += len(channels)
        if isinstance(of, Group):
            assert isinstance(one, Record)
            self._records.close(of, step, one)
            shown = {**of.shown(one), **{f"{tag}_ranks": float(len(one.parts)) for tag in of.tags}}
            yield from _records(step, one.time_ns, shown)
            return
        assert isinstance(one, Round)
        self._rounds.close(self._rounds.of(of), step, one)
        ranks = {f"{of.tag}_ranks": float(one.good)}
        if of.what.startswith("="):
            yield from self._finished(of, step, one)
            yield Derived(step, one.time_ns, ranks)
        else:
            yield Derived(step, one.time_ns, {**_shown(of, one), **ranks})

    def _finished(self, channel: Channel, step: int, one: Round) -> Iterator[Derived]:
        if one.gathering is None:
            return
        try:
            yield from one.gathering.finish(self._run_id, channel.tag, step, one.time_ns)
        except Exception as error:  # noqa: BLE001 - as above
            self._refuse(f"{channel.what[1:]} {channel.tag!a:.100} at step {step}", error)


def _shown(channel: Channel, one: Round) -> dict[str, float]:
    numbers = [value for _, value in sorted(one.parts.items()) if value is not None]
    return {channel.tag + suffix: x for suffix, x in reduced(channel.what, numbers).items()}


def _records(step: int, time_ns: int, scalars: dict[str, float]) -> Iterator[Derived]:
    """A spread has more tags than what it is made of: perhaps more than a record can have."""
    if len(scalars) <= MAX_TAGS_PER_RECORD:
        yield Derived(step, time_ns, scalars)
        return
    items = list(scalars.items())
    for first in range(0, len(items), MAX_TAGS_PER_RECORD):
        yield Derived(step, time_ns, dict(items[first : first + MAX_TAGS_PER_RECORD]))

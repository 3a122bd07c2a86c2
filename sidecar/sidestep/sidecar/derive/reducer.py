"""Puts together what the ranks of a job say of one tag at one step, without the ranks' waiting.

A value is shown when all ranks of the world have spoken; without those that have gone as soon as
they have; and in any case some seconds after the first has spoken. What is shown without a rank is
marked: under ``TAG_ranks`` stands how many it has. Everything that is awaited can be read again
from the journal: the state that is stored says of which rows which parts are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import msgpack

from sidestep.proto import RemoteProtocolError, Value

from ..worlds import Member
from .deriver import Derived
from .reduced_numbers import reduced
from .rounds import Channel, Round, Rounds, RowParts, Spans

if TYPE_CHECKING:
    from ..points import Points

_GRACE_S: Final = 5.0
"""How long a world that all have left is kept open for ranks that were never there."""

_MAX_PARTS: Final = 500_000
_MAX_BYTES: Final = 256 << 20
"""More is not held: the oldest rounds are shown with what they have."""

_UNKNOWN: Final = Member(0, 0, 1, 0, gone=False)


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
        self._rows: dict[int, RowParts] = {}
        self._worlds: dict[int, World] = {}
        self._members: dict[int, Member] = {}
        self._late_told: set[int] = set()
        state: dict[str, Any] = msgpack.unpackb(stored, strict_map_key=False) if stored else {}
        self._awaited: dict[int, list[int] | None] = state.get("rows", {})
        self._resume_to = read_row
        self._spans = Spans(state.get("spans"))
        self.counts = Counts(*state.get("counts", ()))

    # --- state -----------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        """Whether something is awaited."""
        return bool(self._rounds)

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
            "spans": self._spans.packed(),
            "counts": [counts.partial, counts.late, counts.pushed_out],
        }
        return cast("bytes", msgpack.packb(state))

    def report(self) -> Mapping[str, int]:
        """For status."""
        counts = self.counts
        return {
            "awaited": self._rounds.many,
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
        reader = _Row(parts, _flags(wanted), member, world, now_s)
        for point in points:
            if isinstance(point, Value):
                yield from self._value(reader, point)
            else:
                yield from self._numbers(reader, point)
        if not parts.left:
            self._rows.pop(row, None)
        yield from self._push_out()

    def _numbers(self, row: _Row, block: Any) -> Iterator[Derived]:
        reduce, rank, size = block.tags.reduce, row.member.rank, row.world.size
        channels = [Channel(row.member.world, reduce, tag) for tag in block.tags]
        steps_of = [self._rounds.of(channel) for channel in channels]
        times = block.times_ns.tolist()
        for number, step in enumerate(block.steps.tolist()):
            found: dict[str, float] = {}
            time_ns = times[number]
            for channel, steps, value in zip(
                channels, steps_of, block.values[number].tolist(), strict=True
            ):
                at = row.next()
                if at < 0 or self._is_late(channel, step, rank, row, at):
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
                yield Derived(step, time_ns, found)

    def _value(self, row: _Row, part: Value) -> Iterator[Derived]:
        at = row.next()
        if at < 0:
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

    def _is_late(self, channel: Channel, step: int, rank: int, row: _Row, at: int) -> bool:
        if channel not in self._spans or not self._spans.is_late(channel, step, rank):
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
        for channel, step, one in self._rounds.all():
            world = self._worlds[channel.world]
            if now_s - one.began_s >= self._timeout_s:
                world.give_up(one.parts)
            elif channel.world not in over and not world.excuses(one.parts):
                continue
            yield from self._without_some(channel, step, one)
        # Of the newest one somebody may come back who was only thought to be lost.
        ended = frozenset(over - {max(over, default=0)})
        if ended:
            self._rounds.forget(ended)
            self._spans.forget(ended)

    def _push_out(self) -> Iterator[Derived]:
        """Show the oldest rounds when more is awaited than memory is to hold."""
        if self._rounds.many <= _MAX_PARTS and self._rounds.nbytes <= _MAX_BYTES:
            return
        by_age = sorted(self._rounds.all(), key=lambda found: (found[2].began_s, found[1]))
        for channel, step, one in by_age:
            if self._rounds.many <= 0.9 * _MAX_PARTS and self._rounds.nbytes <= 0.9 * _MAX_BYTES:
                return
            self.counts.pushed_out += 1
            yield from self._without_some(channel, step, one)

    def _without_some(self, channel: Channel, step: int, one: Round) -> Iterator[Derived]:
        size = self._worlds[channel.world].size
        missing = frozenset(rank for rank in range(size) if rank not in one.parts)
        self._rounds.close(self._rounds.of(channel), step, one)
        self._spans.partial(channel, step, missing)
        self.counts.partial += 1
        ranks = {f"{channel.tag}_ranks": float(one.good)}
        if channel.what.startswith("="):
            yield from self._finished(channel, step, one)
            yield Derived(step, one.time_ns, ranks)
        else:
            yield Derived(step, one.time_ns, {**_shown(channel, one), **ranks})

    def _finished(self, channel: Channel, step: int, one: Round) -> Iterator[Derived]:
        if one.gathering is None:
            return
        try:
            yield from one.gathering.finish(self._run_id, channel.tag, step, one.time_ns)
        except Exception as error:  # noqa: BLE001 - as above
            self._refuse(f"{channel.what[1:]} {channel.tag!a:.100} at step {step}", error)


class _Row:
    """A journal row while its parts are counted through."""

    __slots__ = ("_at", "_wanted", "member", "now_s", "parts", "world")

    def __init__(
        self,
        parts: RowParts,
        wanted: Callable[[int], bool] | None,
        member: Member,
        world: World,
        now_s: float,
    ) -> None:
        self.parts = parts
        self.member = member
        self.world = world
        self.now_s = now_s
        self._wanted = wanted
        self._at = -1

    def next(self) -> int:
        """The place of the next part in the row; -1 when nothing of it is awaited any more."""
        self._at += 1
        is_wanted = self._wanted is None or self._wanted(self._at)
        self.parts.flags.append(is_wanted)
        self.parts.left += is_wanted
        return self._at if is_wanted else -1


def _flags(spans: list[int] | None) -> Callable[[int], bool] | None:
    """Whether a place lies in one of the spans; None for everywhere."""
    if spans is None:
        return None
    pairs = list(zip(spans[::2], spans[1::2], strict=True))
    return lambda at: any(first <= at < end for first, end in pairs)


def _shown(channel: Channel, one: Round) -> dict[str, float]:
    numbers = [value for _, value in sorted(one.parts.items()) if value is not None]
    return {channel.tag + suffix: x for suffix, x in reduced(channel.what, numbers).items()}

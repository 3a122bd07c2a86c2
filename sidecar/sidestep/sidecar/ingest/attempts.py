"""Which client goes on with what earlier ones of its run have begun, and what that hides.

The rule is in `resume`; here is who is asked, when, and that it holds whatever is killed. What a
client did is stored in the transaction of its records, and so is the purge, in a row before them.

Whether a client goes on with a run can be said when all that came before it is in the journal. So a
new client gets its first credit when the outboxes of the dead have been looked through, those
of its run are read, and it is known of each client of its rank, and of its world, whether it lives:
at once as a rule, since a living client's outbox is locked and lies here, and within `_WAIT_S` in
any case. The first of a new attempt also waits, as long again at most, until the derivers have said
what they make of the attempts before it: reductions over ranks, of which the newest await the dead,
would else be drawn behind the purge. It holds its records meanwhile, as it would if the disk were
full.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from sidestep.proto import RunSpec
from sidestep.proto.session import DEAD_S

from ..journal.resume import Stretch, further, lead, purge_step, repeats
from ..journal.trails import put_trail, tags_of
from ..journal.writer import Journal
from .roster import NODE, ClientEntry, RunEntry
from .worlds import join, put_world

_WAIT_S: Final = 2 * DEAD_S + 1
"""A little more than until a silent client whose outbox cannot be seen counts as lost."""


@dataclass(slots=True)
class _Waiting:
    """A client that has no credit yet.

    Attributes:
        since: when it came, monotonic.
        known: when all that clients had emitted before it was journalled; None while it is not.
        derive_to: the row to which it must be derived by then.
    """

    since: float
    known: float | None = None
    derive_to: int = 0


@dataclass(slots=True)
class _Open:
    """A client that may yet go on with what others have begun.

    Attributes:
        leading: the tags that it would have to repeat.
        known: whether each of its tag sets does.
    """

    leading: frozenset[str]
    known: dict[int, bool] = field(default_factory=dict[int, bool])


class Attempts:
    """The attempts at all runs; lives in ingest's thread, inside its transactions.

    Args:
        journal: the writing end.
        clients: all clients, by their uuids.
        runs: all runs, by their ids.
        purge: journals a purge of a run at a step; None where runs are not written.
        log: says something to the daemon's log.

    Attributes:
        scan_wanted: whether a new client waits for a look at the outboxes of the dead.
    """

    def __init__(
        self,
        journal: Journal,
        clients: Mapping[bytes, ClientEntry],
        runs: Mapping[int, RunEntry],
        purge: Callable[[RunEntry, int], None] | None,
        log: Callable[[str], None],
    ) -> None:
        self.scan_wanted = False
        self._journal = journal
        self._clients = clients
        self._runs = runs
        self._purge = purge
        self._log = log
        self._waiting: dict[bytes, _Waiting] = {}
        self._open: dict[bytes, _Open] = {}
        self._changed: dict[bytes, ClientEntry] = {}

    def forget(self) -> None:
        """After a transaction that failed: everybody introduces himself again."""
        self._waiting.clear()
        self._open.clear()
        self._changed.clear()

    def greet(self, entry: ClientEntry, now: float) -> None:
        """A client has introduced itself."""
        new = not entry.trail.attempt and entry.row.state != NODE
        if new and entry.row.uuid not in self._waiting:
            self._waiting[entry.row.uuid] = _Waiting(now)
            self._changed[entry.row.uuid] = entry
            self.scan_wanted = True

    def credit(self, entry: ClientEntry, credit: int) -> int:
        """What of `credit` the client gets."""
        return 0 if entry.row.uuid in self._waiting else credit

    def settle(self, adopting: Collection[tuple[str, str]], now: float) -> Iterator[ClientEntry]:
        """The clients that need not wait any longer, after a look at the outboxes of the dead.

        Args:
            adopting: name and log directory of the runs of outboxes that are not read to their end.
            now: monotonic time.
        """
        for uuid, waiting in list(self._waiting.items()):
            entry = self._clients.get(uuid)
            if entry is None or entry.row.state != "live":
                del self._waiting[uuid]
                continue
            run = (entry.run.name, entry.run.log_dir)
            since = waiting.since
            unsure = run in adopting or any(self._unsure(o, since) for o in self._before(entry))
            if unsure and now - since < _WAIT_S:
                continue
            if waiting.known is None:
                waiting.known = now
                waiting.derive_to = self._runs[entry.row.run_id].to_derive_row
            if now - waiting.known < _WAIT_S and self._is_behind(entry, waiting.derive_to):
                continue
            del self._waiting[uuid]
            self._begin(entry)
            yield entry

    def take(self, entry: ClientEntry, run: RunEntry, stretches: list[Stretch]) -> None:
        """Records of a client are about to be journalled: what must come before them comes now."""
        if entry.row.state == NODE:
            return  # a machine trains nothing
        if not entry.trail.attempt:
            self._waiting.pop(entry.row.uuid, None)
            self._begin(entry)
        if not entry.trail.settled:
            self._decide(entry, run, stretches)
        entry.trail.take(stretches)
        self._changed[entry.row.uuid] = entry

    def store(self) -> None:
        """Write what has changed into this round's transaction."""
        for entry in self._changed.values():
            if entry.trail.changed:
                self._journal.begin()
                put_trail(self._journal.connection, entry.row.id, entry.trail)
                entry.trail.changed = False
        self._changed.clear()

    # --- inside --------------------------------------------------------------------------------

    def _beside(self, entry: ClientEntry) -> Iterator[ClientEntry]:
        """The other clients of the run with the same rank."""
        for other in self._of_run(entry.row.run_id):
            if other is not entry and other.row.rank == entry.row.rank:
                yield other

    def _before(self, entry: ClientEntry) -> Iterator[ClientEntry]:
        """Those beside it, and the ranks whose world it would join if one of them lived."""
        mine = entry.hello.world_size, entry.hello.attempt
        for other in self._of_run(entry.row.run_id):
            same_job = (other.hello.world_size, other.hello.attempt) == mine and mine[0] > 1
            if other is not entry and (same_job or other.row.rank == entry.row.rank):
                yield other

    def _unsure(self, other: ClientEntry, since: float) -> bool:
        """Whether `other` may have died without a trace, as those before it may have."""
        seems_live = other.row.state == "live" and other.trail.attempt > 0
        return seems_live and other.heard < since and not outbox_is_here(other)

    def _is_behind(self, entry: ClientEntry, derive_to: int) -> bool:
        """Whether something is still to be said of earlier attempts, which a purge may hide."""
        run = self._runs[entry.row.run_id]
        if run.derived_row is None or run.derived_row >= derive_to:
            return False
        if self._purge is None or not _is_purged(run.spec):
            return False
        others = list(self._of_run(run.id))
        if join(entry, others) <= max((other.world for other in others), default=0):
            return False  # who joins others awaits nothing: what is awaited may be its own word
        if any(other.row.state == "live" for other in self._beside(entry)):
            return False  # it resumes nothing
        return lead([other.trail for other in others if other is not entry]) is not None

    def _begin(self, entry: ClientEntry) -> None:
        """All that came before is known: the client begins a new attempt, or joins one."""
        others = [other for other in self._beside(entry) if other.trail.attempt]
        latest = max((other.trail.attempt for other in others), default=0)
        joins = any(other.row.state == "live" for other in others)
        entry.trail.attempt = latest if joins else latest + 1
        entry.trail.settled = joins
        entry.trail.changed = True
        self._changed[entry.row.uuid] = entry
        if not entry.world:
            entry.world = join(entry, self._of_run(entry.row.run_id))
            self._journal.begin()
            put_world(self._journal.connection, entry)

    def _decide(self, entry: ClientEntry, run: RunEntry, stretches: list[Stretch]) -> None:
        """See whether the client goes on with what others have begun."""
        trail = entry.trail
        before = [o for o in self._beside(entry) if 0 < o.trail.attempt < trail.attempt]
        if not before:  # a rank that the job did not have before goes on with what the others had
            before = [o for o in self._of_run(run.id) if 0 < o.world < entry.world]
        if entry.row.uuid not in self._open:
            found = lead([other.trail for other in before])
            leading = frozenset(self._tags(before[found[0]], found[1])) if found else frozenset()
            self._open[entry.row.uuid] = _Open(leading)
        state = self._open[entry.row.uuid]
        first = self._first_repeated(entry, state, stretches)
        if state.leading and first is None:
            return
        del self._open[entry.row.uuid]
        trail.settled = trail.resumed = trail.changed = True
        if first is None or self._purge is None or not _is_purged(run.spec):
            return
        reached = [
            furthest
            for other in before
            for tag_set, furthest in further(other.trail, first)
            if repeats(self._tags(other, tag_set), state.leading)
        ]
        fronts = [e.trail.front for e in self._of_run(run.id) if e.row.state == "live"]
        step = purge_step(first, max(reached, default=first), fronts)
        if step is None:
            return
        self._purge(run, step)
        for other in self._of_run(run.id):
            other.trail.cut(step)
            self._changed[other.row.uuid] = other
        self._log(
            f"run {run.spec.name!r} goes on from step {first}, below {max(reached)}: TensorBoard "
            f"hides what it had of step {step} and later ones"
        )

    def _first_repeated(
        self, entry: ClientEntry, state: _Open, stretches: list[Stretch]
    ) -> int | None:
        """The step of the first record that repeats the lead."""
        for tag_set, _records, first, _furthest in stretches:
            if tag_set < 0:
                continue
            if tag_set not in state.known:
                state.known[tag_set] = repeats(self._tags(entry, tag_set), state.leading)
            if state.known[tag_set]:
                return first
        return None

    def _tags(self, entry: ClientEntry, tag_set: int) -> tuple[str, ...]:
        return tags_of(self._journal.connection, entry.row.id, tag_set)

    def _of_run(self, run_id: int) -> Iterator[ClientEntry]:
        return (entry for entry in self._clients.values() if entry.row.run_id == run_id)


def outbox_is_here(entry: ClientEntry) -> bool:
    """Whether the client's outbox can be seen, so that its lock says whether the client lives."""
    return bool(entry.hello.outbox) and os.path.exists(entry.hello.outbox)


def _is_purged(spec: RunSpec) -> bool:
    """Not where TensorBoard is not wanted, nor in torch's folders: there a script says so."""
    if isinstance(spec.tensorboard, bool):
        return spec.tensorboard
    return spec.tensorboard.get("folder") != "."

"""What a client says that is to last: its tag sets and records go into the journal, or are refused.

Lives in ingest's thread, inside the transaction of its round.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from sidestep.proto import Batch, Gap, RemoteProtocolError
from sidestep.proto.limits import MAX_TAG_SETS
from sidestep.proto.records import HEADER
from sidestep.proto.session import Append, ServerAction
from sidestep.proto.tag_sets import reduction_of

from ..journal.derive_state import DeriveState
from ..journal.resume import Stretch
from ..journal.writer import Journal
from ..peers.refusals import Refusals
from ..rows.malformed import first_fault
from .attempts import Attempts
from .roster import DERIVER, NODE, REDUCED, ClientEntry, RunEntry

_FAULTS: Final = 64
"""With more faults in a dead client's batch the rest of it is refused as it is."""


MAX_RUN_TAG_SETS: Final = 4 * MAX_TAG_SETS
"""Tag sets of one run's living clients: each costs memory here, in its sinks and in its readers."""


class Intake:
    """Journals what clients send, or refuses it.

    Args:
        journal: the writing end.
        clients: all clients, by their uuids.
        runs: all runs, by their ids.
        attempts: which of them goes on with what others have begun.
        refusals: where what is refused is counted.
        act: does what a client's session says.
        derived: the kinds of value that the derivers are to read.
    """

    def __init__(
        self,
        journal: Journal,
        clients: Mapping[bytes, ClientEntry],
        runs: Mapping[int, RunEntry],
        attempts: Attempts,
        refusals: Refusals,
        act: Callable[[ClientEntry, Iterable[ServerAction]], None],
        derived: frozenset[str],
    ) -> None:
        self._derived = derived
        self._journal = journal
        self._clients = clients
        self._runs = runs
        self._attempts = attempts
        self._refusals = refusals
        self._act = act

    def define_tags(
        self, entry: ClientEntry, first_id: int, tag_sets: Sequence[tuple[str, ...]]
    ) -> None:
        """Remember tag sets of a client, unless it or its run has too many."""
        new = sum(first_id + n not in entry.tag_counts for n in range(len(tag_sets)))
        if first_id + len(tag_sets) > MAX_TAG_SETS or not self._room_for(entry, new):
            entry.crowded = True  # its records are refused then, and counted by the client
            return
        self._journal.begin()
        for tag_set, tags in enumerate(tag_sets, first_id):
            if tag_set not in entry.tag_counts:
                self._journal.put_tag_set(entry.row.id, tag_set, tags)
                entry.tag_counts[tag_set] = len(tags)
                if reduction_of(tags):
                    entry.reduced.add(tag_set)

    def _room_for(self, entry: ClientEntry, tag_sets: int) -> bool:
        """Whether the run may have so many more tag sets, of its living clients together."""
        run_id = entry.row.run_id
        return (
            tag_sets
            + sum(
                len(other.tag_counts)
                for other in self._clients.values()
                if other.row.run_id == run_id and (other is entry or other.row.state == "live")
            )
            <= MAX_RUN_TAG_SETS
        )

    def append(self, entry: ClientEntry, append: Append) -> None:
        """Journal records of a client; what is malformed among them is refused."""
        rest: Append | None = append
        for faults in itertools.count():
            if rest is None:
                return
            rest = self._append_some(entry, rest, one_by_one=faults < _FAULTS)

    def _append_some(
        self, entry: ClientEntry, append: Append, *, one_by_one: bool
    ) -> Append | None:
        """Journal what can be; what is left, if there is nobody who would send it again."""
        from ..rows.points import check_rows

        count = append.last_seq - append.first_seq + 1
        stretches: list[Stretch] = []
        try:
            data, last_step, kinds = check_rows(
                append.data, entry.tag_counts, append.skip, count, stretches
            )
        except RemoteProtocolError:
            return self._refuse(entry, append, one_by_one=one_by_one)
        if entry.reduced and not entry.reduced.isdisjoint(stretch[0] for stretch in stretches):
            kinds |= {REDUCED}
        self._journal.begin()
        run = self._runs[entry.row.run_id]
        self._attempts.take(entry, run, stretches)
        to_derive = not kinds.isdisjoint(self._derived)
        if to_derive and run.derived_row is None:
            run.derived_row = self._journal.last_row
            run.derived = DeriveState(read_row=run.derived_row)
            self._journal.put_cursor(DERIVER, run.id, run.derived_row)
        row = self._journal.append(run.id, entry.row.id, count, data, kinds, append.first_seq)
        if to_derive:
            run.to_derive_row = row
        entry.row.last_step = last_step
        if entry.row.state != NODE:
            run.records += count
            run.last_step = last_step
        entry.changed = entry.committing = True
        return None

    def _refuse(self, entry: ClientEntry, append: Append, *, one_by_one: bool) -> Append | None:
        """Journal what lies before the first malformed records, and refuse those."""
        data, last_seq = append.data, append.last_seq
        count = last_seq - append.first_seq + 1
        fault = first_fault(data, entry.tag_counts, append.skip, count)
        first = append.first_seq + fault.index
        bad = Append(first, first + fault.count - 1, 0, data[fault.start : fault.end])
        if not one_by_one:
            bad = Append(first, last_seq, 0, data[fault.start :])
        if fault.index:
            self.append(
                entry, Append(append.first_seq, first - 1, append.skip, data[: fault.start])
            )
        reason = str(fault.error)
        if fault.error.code == "undefined" and entry.identity is not None and not entry.crowded:
            # Its definition was lost on the way; a client that is asked says it again.
            actions = entry.session.undefined(bad)
        else:
            actions = entry.session.refuse(bad, reason)
        self._act(entry, actions)
        if entry.session.greeted:  # else it was only asked
            who = f"client {entry.row.uuid.hex()} of run {entry.run.name!r:.100}"
            self._refusals.note(
                "record",
                fault.error.code,
                reason,
                bad.data,
                # What a peer claims may be any number; so many there can have been.
                count=min(bad.last_seq - first + 1, max(1, len(bad.data) // HEADER.size)),
                who=who,
            )
        if entry.identity is not None:
            return None
        # Nobody is left to announce the gap, and to send the rest again.
        self._act(entry, entry.session.receive(Gap(bad.first_seq, bad.last_seq, reason)))
        if bad.last_seq == last_seq:
            return None
        rest = entry.session.receive(Batch(bad.last_seq + 1, last_seq, data[fault.end :]))
        return next((action for action in rest if isinstance(action, Append)), None)

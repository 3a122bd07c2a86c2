"""Journals what the daemon itself has to say: samples of the machine, results of derivers."""

from __future__ import annotations

import time

from sidestep.proto import Value
from sidestep.proto.limits import MAX_TAG_SETS
from sidestep.proto.records import Scalars, encode_scalars, encode_value

from ..alarms import states_of
from ..journal.derive_state import put_derive_state
from ..journal.writer import ClientRow, Journal
from ..peers.refusals import Refusals
from .roster import DERIVER, DaemonPoints, RunEntry


class OwnPoints:
    """Appends `DaemonPoints` as if each source were a client of the run.

    Args:
        journal: inside a transaction whenever `append` is called.
        refusals: where numbers are counted whose tags are too many.
        max_tag_sets: distinct tuples of tags of one source of one run.
        numbered: whether the records get numbers, so that they can be passed on.
    """

    def __init__(
        self,
        journal: Journal,
        refusals: Refusals | None = None,
        max_tag_sets: int = MAX_TAG_SETS,
        *,
        numbered: bool = False,
    ) -> None:
        self._numbered = numbered
        self._journal = journal
        self._refusals = refusals
        self._max_tag_sets = max_tag_sets
        self._sources: dict[tuple[int, str], tuple[ClientRow, dict[tuple[str, ...], int]]] = {}

    def forget(self) -> None:
        """After a transaction that failed: ask the journal again."""
        self._sources.clear()

    def append(self, run: RunEntry, points: DaemonPoints) -> bool:
        """Journal `points` of `run`, with the deriver's cursor if they have one; whether it did."""
        if points.derived_row is not None and points.derived_after != run.derived.token:
            # A deriver that was restarted says it again; what follows on something that a failed
            # transaction took with it will be said again.
            return False
        client, tag_sets = self._source(run.id, points.source)
        data: list[bytes | bytearray | memoryview] = []
        count = 0
        for step, time_ns, numbers in points.scalars:
            tags = tuple(numbers)
            if not tags:
                continue
            if tags not in tag_sets:
                if len(tag_sets) >= self._max_tag_sets:
                    # What is derived of ever new tags has ever new tags.
                    why = f"run {run.spec.name!r:.100} has too many tags already"
                    if self._refusals is not None:
                        self._refusals.note("record", "own_tags", why)
                    continue
                tag_sets[tags] = len(tag_sets)
                self._journal.put_tag_set(client.id, tag_sets[tags], tags)
            row = Scalars(tag_sets[tags], step, time_ns, tuple(numbers.values()))
            data.append(encode_scalars(row))
            count += 1
        for value in points.values:
            data += encode_value(value)[1]
            count += 1
        if data:
            kinds = {value.kind for value in points.values}
            self._put(client, count, b"".join(data), kinds)
        if points.derived_row is not None:
            self._journal.put_cursor(DERIVER, run.id, points.derived_row)
            put_derive_state(self._journal.connection, run.id, points.derived)
            run.derived_row, run.derived = points.derived_row, points.derived
            run.reductions = points.reductions
        if points.alarm_states:
            self._journal.put_alarm_states(run.id, points.alarm_states)
            run.alarms = {**run.alarms, **states_of(points.alarm_states)}
        return True

    def _put(self, client: ClientRow, count: int, data: bytes, kinds: set[str]) -> None:
        first_seq = client.durable_seq + 1 if self._numbered else None
        self._journal.append(client.run_id, client.id, count, data, kinds, first_seq)
        if self._numbered:
            client.durable_seq += count
            self._journal.put_client(client)

    def purge(self, run: RunEntry, step: int) -> None:
        """Journal that TensorBoard shall hide what it has of `step` of the run and later ones."""
        mark = Value("purge", "purge", step, time.time_ns())
        self.append(run, DaemonPoints(run.id, "resume", values=[mark]))

    def _source(self, run_id: int, source: str) -> tuple[ClientRow, dict[tuple[str, ...], int]]:
        found = self._sources.get((run_id, source))
        if found is None:
            uuid = f"{source}/{run_id}".encode()
            known = self._journal.durable_seq(uuid)
            client = ClientRow(0, uuid, run_id, 0, 0, 0, "daemon", known, 0, 0, 0, None)
            client.id = self._journal.put_client(client)
            found = client, self._journal.tag_set_ids(client.id)
            self._sources[run_id, source] = found
        return found

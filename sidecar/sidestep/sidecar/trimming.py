"""Lets rows leave the journal: those that every sink and the derivers have passed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .backlog_cap import CAPPED, BacklogCap
from .deriving import underived
from .roster import Snapshot
from .supervisor import Supervisor


class Trimming:
    """Asked in each tick of the daemon's main thread.

    Args:
        supervisor: knows the sinks.
        cap: what may let go of rows that a sink has not passed.
        trim: has the rows deleted that everybody has passed, by run.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        cap: BacklogCap,
        trim: Callable[[Mapping[int, int]], None],
    ) -> None:
        self._supervisor = supervisor
        self._cap = cap
        self._trim = trim
        self._asked: tuple[Mapping[int, int], int] = {}, 0

    def tick(self, snapshot: Snapshot) -> None:
        """Let go of what has become superfluous."""
        others = {run_id: self._others(run_id, snapshot) for run_id in snapshot.runs}
        capped = [sink for sink in self._supervisor.sinks() if sink.name in CAPPED and sink.begun]
        self._cap.look(
            (sink, min(others[sink.run_id], snapshot.old_row))
            for sink in capped
            if sink.run_id in others
        )
        passed = dict(others)
        for sink in self._supervisor.sinks():
            if sink.name in CAPPED and sink.run_id in passed:
                passed[sink.run_id] = min(passed[sink.run_id], self._cap.passed(sink))
        # A round of ingest's that failed has forgotten what it was asked.
        asked = passed, snapshot.lost_rounds
        if asked != self._asked:
            self._asked = asked
            self._trim(passed)

    def _others(self, run_id: int, snapshot: Snapshot) -> int:
        """The row up to which everybody who reads a run has come, capped sinks left aside."""
        run = snapshot.runs[run_id]
        sinks = [sink for sink in self._supervisor.sinks(run_id) if sink.name not in CAPPED]
        row = min((sink.cursor.row for sink in sinks), default=snapshot.last_row)
        if run.derived_row is not None and underived(run):
            row = min(row, run.derived_row)
        return row

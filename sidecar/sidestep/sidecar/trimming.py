"""Lets rows leave the journal: those that every sink and the derivers have passed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping

from .backlog_cap import CAPPED, BacklogCap
from .derive.deriving import underived
from .ingest.roster import Snapshot
from .supervision.supervisor import Supervisor
from .supervision.wanted import HOLD_NO_ROWS


class Trimming:
    """Asked in each tick of the daemon's main thread.

    Args:
        supervisor: knows the sinks.
        cap: what may let go of rows that a sink has not passed.
        trim: has the rows deleted that everybody has passed, by run.
        log: says something to the daemon's log.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        cap: BacklogCap,
        trim: Callable[[Mapping[int, int]], None],
        log: Callable[[str], None] = print,
    ) -> None:
        self._supervisor = supervisor
        self._cap = cap
        self._trim = trim
        self._log = log
        self._asked: dict[int, tuple[int, int]] = {}  # row, and which rows were old then
        self._lost_rounds = 0
        self._unmeasured = False

    def tick(self, snapshot: Snapshot) -> None:
        """Let go of what has become superfluous."""
        others = {run_id: self._others(run_id, snapshot) for run_id in snapshot.runs}
        capped = [sink for sink in self._supervisor.sinks() if sink.name in CAPPED and sink.begun]
        try:
            self._cap.look(
                (sink, min(others[sink.run_id], snapshot.old_row))
                for sink in capped
                if sink.run_id in others
            )
            self._unmeasured = False
        except sqlite3.Error as error:  # measured in a later tick; nothing leaves unmeasured
            if not self._unmeasured:
                self._log(f"what waits for one sink alone cannot be measured: {error}")
            self._unmeasured = True
        passed = dict(others)
        for sink in self._supervisor.sinks():
            if sink.name in CAPPED and sink.run_id in passed:
                passed[sink.run_id] = min(passed[sink.run_id], self._cap.passed(sink))
        if snapshot.lost_rounds != self._lost_rounds:
            # A round of ingest's that failed has forgotten what it was asked.
            self._lost_rounds = snapshot.lost_rounds
            self._asked.clear()
        old = snapshot.old_row
        # Of a run that rests nothing more can leave, once it has nothing of recent history.
        if any(self._asked.get(run_id, (-1, 0))[0] != row for run_id, row in passed.items()):
            wanted = {run_id: row for run_id, row in passed.items() if self._may_have(run_id, row)}
            self._asked.update({run_id: (row, old) for run_id, row in wanted.items()})
            self._trim(wanted)

    def _may_have(self, run_id: int, row: int) -> bool:
        """Whether the run may have rows to let go that were not asked for, or were not old."""
        asked, old = self._asked.get(run_id, (-1, 0))
        return row != asked or asked > old

    def _others(self, run_id: int, snapshot: Snapshot) -> int:
        """The row up to which everybody has come who must read a run, capped sinks left aside."""
        run = snapshot.runs[run_id]
        asked = CAPPED | HOLD_NO_ROWS
        sinks = [sink for sink in self._supervisor.sinks(run_id) if sink.name not in asked]
        row = min((sink.cursor.row for sink in sinks), default=snapshot.last_row)
        if run.derived_row is not None and underived(run):
            row = min(row, run.derived_row)
        return row

"""The daemon's end of the derivers' process: tells it of rows, submits what it makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from sidestep.proto import Value
from sidestep.proto.records import decode_value

from .alarms import Rules
from .derive.worker import start_message
from .processes import Child
from .roster import DERIVER, DaemonPoints, RunEntry, Snapshot


@dataclass(slots=True)
class _Pending:
    """What was said of a row that is not done."""

    scalars: list[tuple[int, int, dict[str, float]]] = field(
        default_factory=list[tuple[int, int, dict[str, float]]]
    )
    values: list[Value] = field(default_factory=list[Value])
    alarm_states: dict[str, bytes] = field(default_factory=dict[str, bytes])


class Deriving:
    """One process for all derivers of all runs; lives in the daemon's main thread.

    Args:
        journal_path: what it reads.
        rules: the alarms' thresholds.
        submit: has points journalled.
        log: says something to the daemon's log.

    Attributes:
        refused: values of which nothing could be made.
    """

    def __init__(
        self,
        journal_path: str,
        rules: Rules,
        submit: Callable[[DaemonPoints], None],
        log: Callable[[str], None],
    ) -> None:
        plain = rules.plain() if rules.enabled else None
        self._child = Child(
            ["sidestep.sidecar.derive.worker"], lambda: start_message(journal_path, plain)
        )
        self._submit = submit
        self._log = log
        self._told: dict[int, int] = {}
        self._pending: dict[int, _Pending] = {}
        self._lost_rounds = 0
        self.refused = 0

    def fileno(self) -> int:
        """For a poller; negative while there is no process."""
        return self._child.fileno() if self._child.running else -1

    def tick(self, snapshot: Snapshot) -> None:
        """Tell the process of runs that have something for it; start it for the first."""
        if snapshot.lost_rounds != self._lost_rounds:
            # What it said may be lost with them, and what it knows is ahead of the journal.
            self._lost_rounds = snapshot.lost_rounds
            self._pending.clear()
            self._child.kill()
        for run in snapshot.runs.values():
            if not underived(run):
                continue
            if self._child.ensure():
                self._told.clear()
            # One message under way for each run: a process that is busy must not be written full.
            if self._child.running and (run.derived_row or 0) >= self._told.get(run.id, 0):
                self._told[run.id] = run.to_derive_row
                self._child.tell({"op": "rows", "run_id": run.id, "after": run.derived_row})

    def hear(self) -> None:
        """The process has said something, or has gone."""
        messages = self._child.hear()
        if messages is None:
            self._pending.clear()
            self._log(f"the deriver ended with code {self._child.last_exit}; it starts again")
            return
        for message in messages:
            self._take(message)

    def kill(self) -> None:
        """End the process at once."""
        self._child.kill()

    def _take(self, message: dict[str, Any]) -> None:
        run_id = int(message["run_id"])
        pending = self._pending.setdefault(run_id, _Pending())
        pending.scalars += [(int(step), int(ns), found) for step, ns, found in message["scalars"]]
        pending.values += [decode_value(cast("bytes", data)) for data in message["values"]]
        pending.alarm_states.update(message["alarm_states"])
        if "row" not in message:
            return  # all of a row in one transaction
        del self._pending[run_id]
        self.refused += int(message["refused"])
        self._submit(
            DaemonPoints(
                run_id,
                DERIVER,
                pending.scalars,
                pending.values,
                derived_row=int(message["row"]),
                derived_after=int(message["after"]),
                alarm_states=pending.alarm_states,
            )
        )


def underived(run: RunEntry) -> bool:
    """Whether a run has rows that the derivers must read."""
    return run.derived_row is not None and run.derived_row < run.to_derive_row

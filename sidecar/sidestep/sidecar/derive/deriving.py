"""The daemon's end of the derivers' process: tells it of rows, submits what it makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from sidestep.proto import Value
from sidestep.proto.records import decode_value

from ..alarms import Rules
from ..ingest.roster import DERIVER, DaemonPoints, RunEntry, Snapshot
from ..journal.derive_state import DeriveState
from ..supervision.processes import Child
from .worker import start_message


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
        reduce_timeout_s: how long a reduction over ranks waits for one of them.

    Attributes:
        refused: values of which nothing could be made.
    """

    def __init__(
        self,
        journal_path: str,
        rules: Rules,
        submit: Callable[[DaemonPoints], None],
        log: Callable[[str], None],
        reduce_timeout_s: float = 30.0,
    ) -> None:
        plain = rules.plain() if rules.enabled else None
        self._child = Child(
            ["sidestep.sidecar.derive.worker"],
            lambda: start_message(journal_path, plain, reduce_timeout_s),
        )
        self._number = 1  # of the process: what it says may come after its end
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
        if snapshot.lost_rounds != self._lost_rounds or snapshot.refused_deriver == self._number:
            # What it said may be lost with them, and what it knows is ahead of the journal; or the
            # journal has the last words of the process before, which this one did not know of.
            self._lost_rounds = snapshot.lost_rounds
            self._forget()
            self._child.kill()
        for run in snapshot.runs.values():
            if not underived(run):
                continue
            if self._child.ensure():
                self._told.clear()
            # One message under way for each run: a process that is busy must not be written full.
            told = self._told.get(run.id, -1)
            read = max(run.derived_row or 0, run.derived.read_row)
            if self._child.running and read >= told and run.to_derive_row > told:
                self._told[run.id] = run.to_derive_row
                self._child.tell({"op": "rows", "run_id": run.id, "after": run.derived_row})

    def hear(self) -> None:
        """The process has said something, or has gone."""
        messages = self._child.hear()
        if messages is None:
            self._forget()
            self._log(f"the deriver ended with code {self._child.last_exit}; it starts again")
            return
        for message in messages:
            self._take(message)

    def kill(self) -> None:
        """End the process at once."""
        self._child.kill()

    def _forget(self) -> None:
        self._pending.clear()
        self._number += 1

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
                derived=DeriveState(
                    int(message["token"]), int(message["read"]), bytes(message["state"])
                ),
                derived_after=int(message["after"]),
                deriver=self._number,
                reductions={str(name): int(n) for name, n in message["reductions"].items()},
                alarm_states=pending.alarm_states,
            )
        )


def underived(run: RunEntry) -> bool:
    """Whether a run has rows that the derivers must read."""
    return run.derived_row is not None and run.derived_row < run.to_derive_row

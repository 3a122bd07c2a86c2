"""When is everything written? A question with stages, asked until the answer is yes.

What was journalled when the question was first asked; before that, the outboxes of clients that
are dead already; after that, what the deriver makes of it; then every sink; then the sinks of runs
that have ended are closed, so that their files are complete.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..ingest.roster import Snapshot
from ..supervision.supervisor import SinkHandle, Supervisor


@dataclass(slots=True)
class Drain:
    """One question. `advance` is called until `done` or `failed`.

    Attributes:
        scan: the scan for dead outboxes that must be over.
        wanted: which sinks must have written it, and need not be closed; None for all.
        done: everything is written.
        failed: why it never will be, as a sentence.
        pending: (sink, records) that are still to be written.
    """

    scan: int
    wanted: Callable[[SinkHandle], bool] | None = None
    done: bool = False
    failed: str | None = None
    pending: list[tuple[SinkHandle, int]] = field(default_factory=list[tuple[SinkHandle, int]])
    _derive_to: dict[int, int] | None = None
    _totals: dict[int, int] | None = None

    def advance(self, snapshot: Snapshot, supervisor: Supervisor, live_runs: set[int]) -> None:
        """Look again."""
        if snapshot.scanned < self.scan or snapshot.adopting or snapshot.storage_error:
            return
        if self._derive_to is None:
            self._derive_to = {
                run_id: run.to_derive_row
                for run_id, run in snapshot.runs.items()
                if run.derived_row is not None
            }
        if self._totals is None:
            derived = {run.id: run.derived_row or 0 for run in snapshot.runs.values()}
            if any(derived.get(run, row) < row for run, row in self._derive_to.items()):
                return
            self._totals = dict(snapshot.totals)
        self.pending = [
            (sink, max(0, self._totals.get(sink.run_id, 0) - sink.cursor.total))
            for sink in supervisor.sinks()
            if (self.wanted is None or self.wanted(sink))
            and (
                self._totals.get(sink.run_id, 0) > sink.cursor.total
                or (
                    self.wanted is None
                    and sink.run_id not in live_runs
                    and (sink.child.running or sink.unclosed)
                )
            )
        ]
        for sink, _ in self.pending:
            supervisor.hurry(sink)
        broken = next((sink for sink, _ in self.pending if sink.state == "failed"), None)
        if broken is not None:
            self.failed = f"{broken.name} of run {broken.spec.name!r} cannot work: {broken.error}"
        self.done = not self.pending

    def reply(self, token: int) -> dict[str, Any]:
        """What the asker is told."""
        return {
            "token": token,
            "done": self.done,
            "failed": self.failed,
            "pending": [
                {"run": sink.spec.name, "sink": sink.name, "lag_records": lag}
                for sink, lag in self.pending
            ],
        }

"""Decides which sinks must run, starts their workers, tells them of new rows, ends the idle ones.

A sink is one (run, destination). Its worker is wanted while its run is live or has rows that it
has not written; it is closed when the run has ended and everything is written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from sidestep.proto import RunSpec

from . import cursor_file
from .cursor_file import Cursor
from .journal_reader import pack_spec
from .processes import Child
from .roster import Snapshot

_LINGER_S: Final = 1.0
"""A run whose last client has gone is closed after this, in case another joins at once."""

_DEADLINE_S: Final = 120.0
"""A worker that is behind and says nothing for so long is killed: its library hangs."""

_WORKER: Final = "sidestep.sidecar.worker"


@dataclass(slots=True)
class SinkHandle:
    """One sink of one run, as the daemon sees it.

    Attributes:
        state: ``idle`` (nothing to do), ``starting``, ``ok``, ``degraded`` (retrying),
            ``failed`` (will not work without a person), ``closed`` (the run has ended and
            everything is written).
    """

    run_id: int
    name: str
    child: Child
    cursor: Cursor
    state: str = "idle"
    error: str | None = None
    skipped: int = 0
    heard: float = 0.0
    told: bool = False
    closing: bool = False
    idle_since: float | None = None
    spec: RunSpec = field(default_factory=lambda: RunSpec("", ""))


class Supervisor:
    """All sinks of all runs; lives in the daemon's main thread.

    Args:
        journal_path: what the workers read.
        journal: its identity.
        cursor_dir: where their cursors are; must exist.
        umask: for what the sinks write: the user's own, not the daemon's private one.
        log: says something to the daemon's log.
        archive: whether runs are to have an archive.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        journal_path: str,
        journal: int,
        cursor_dir: str,
        umask: int,
        log: Callable[[str], None],
        *,
        archive: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._umask = umask
        self._archive = archive
        self._journal_path = journal_path
        self._journal = journal
        self._cursor_dir = cursor_dir
        self._log = log
        self._clock = clock
        self._sinks: dict[tuple[int, str], SinkHandle] = {}
        self._stopping = False

    def sinks(self, run_id: int | None = None) -> list[SinkHandle]:
        """The sinks of a run, or of all runs."""
        return [s for (run, _), s in self._sinks.items() if run_id is None or run == run_id]

    def children(self) -> Iterator[SinkHandle]:
        """Sinks that have a process, for the poller."""
        return (sink for sink in self._sinks.values() if sink.child.running)

    def lag(self, sink: SinkHandle, snapshot: Snapshot) -> int:
        """Records that the sink has not written."""
        return max(0, snapshot.totals.get(sink.run_id, 0) - sink.cursor.total)

    def passed(self, run_id: int, snapshot: Snapshot) -> int:
        """The row up to which every sink of a run has come."""
        return min((s.cursor.row for s in self.sinks(run_id)), default=snapshot.last_row)

    def tick(self, snapshot: Snapshot, live_runs: set[int]) -> None:
        """Start, tell, close: whatever each sink needs now."""
        now = self._clock()
        for run_id, run in snapshot.runs.items():
            for name in _wanted(run.spec, archive=self._archive):
                key = run_id, name
                if key not in self._sinks:
                    self._sinks[key] = self._handle(run_id, run.spec, name)
                self._sinks[key].spec = run.spec
            # All of them: what an earlier client of the run asked for goes on when a later one
            # does not.
            for sink in self.sinks(run_id):
                self._tick_sink(sink, self.lag(sink, snapshot), run_id in live_runs, now)

    def hear(self, sink: SinkHandle, snapshot: Snapshot) -> None:
        """A worker's channel is readable."""
        messages = sink.child.hear()
        if messages is None:
            self._ended(sink)
            return
        sink.heard = self._clock()
        for message in messages:
            self._take(sink, message)
        sink.told = False
        if self.lag(sink, snapshot) and sink.state == "ok":
            self._tell(sink)

    def stop(self, drained: bool) -> None:
        """Tell all workers to close; `drained` says whether their runs may be finished."""
        self._stopping = True
        for sink in self.children():
            if not sink.closing:
                sink.closing = True
                sink.child.tell({"op": "close", "finished": drained})

    def kill(self) -> None:
        """End all workers at once."""
        for sink in self.children():
            sink.child.kill()

    # --- one sink ------------------------------------------------------------------------------

    def _handle(self, run_id: int, spec: RunSpec, name: str) -> SinkHandle:
        path = os.path.join(self._cursor_dir, cursor_file.file_name(spec.name, spec.log_dir, name))
        key = (run_id, name)

        def greet() -> dict[str, Any]:
            return {
                "sink": name,
                "run_id": run_id,
                "spec": pack_spec(self._sinks[key].spec),
                "journal": self._journal_path,
                "cursor": path,
                "umask": self._umask,
            }

        return SinkHandle(
            # Its name is for those who look at the list of processes.
            run_id,
            name,
            Child([_WORKER, name], greet),
            cursor_file.load(path, self._journal),
        )

    def _tick_sink(self, sink: SinkHandle, lag: int, live: bool, now: float) -> None:
        if self._stopping or sink.state == "failed":
            return
        if not sink.child.running:
            if lag and sink.child.ensure():
                sink.state, sink.heard, sink.closing = "starting", now, False
            return
        if lag and not sink.told and not sink.closing and sink.state == "ok":
            self._tell(sink)
        if (lag or sink.state == "starting") and now - sink.heard > _DEADLINE_S:
            self._log(f"{sink.name} of run {sink.spec.name!r} hangs: its worker is killed")
            sink.child.kill()
            sink.state, sink.error = "degraded", f"no answer for {_DEADLINE_S:.0f} s"
            return
        if live or lag or sink.state != "ok":
            sink.idle_since = None
        elif sink.idle_since is None:
            sink.idle_since = now
        elif now - sink.idle_since > _LINGER_S and not sink.closing:
            sink.closing = True
            sink.heard = now
            sink.child.tell({"op": "close", "finished": True})

    def _tell(self, sink: SinkHandle) -> None:
        sink.told = True
        sink.heard = self._clock()
        sink.child.tell({"op": "rows"})

    def _take(self, sink: SinkHandle, message: dict[str, Any]) -> None:
        state, error = str(message["state"]), message["error"]
        if state == "degraded" and sink.state != "degraded":
            self._log(f"{sink.name} of run {sink.spec.name!r}: {error}")
        sink.state, sink.error = state, error
        sink.skipped = int(message["skipped"])
        sink.cursor = Cursor(int(message["row"]), int(message["total"]))

    def _ended(self, sink: SinkHandle) -> None:
        sink.told = False
        if sink.closing and sink.state == "closed":
            return
        if sink.state == "failed":
            self._log(f"{sink.name} of run {sink.spec.name!r} cannot work: {sink.error}")
            return
        sink.state = "degraded"
        sink.error = sink.error or f"its worker ended with code {sink.child.last_exit}"
        self._log(f"{sink.name} of run {sink.spec.name!r}: {sink.error}")


def _wanted(spec: RunSpec, *, archive: bool) -> list[str]:
    wanted = {
        "tensorboard": bool(spec.tensorboard),
        "wandb": spec.wandb is not None,
        "archive": archive,
    }
    return [name for name, is_wanted in wanted.items() if is_wanted]

"""Decides which sinks must run, starts their workers, tells them of new rows, ends the idle ones.

A sink is one (run, destination). Its worker is wanted while its run is live or has rows that it
has not written; it is closed when the run has ended and everything is written.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sidestep.proto import Alarm, RunSpec

from ..ingest.roster import PassedAlarm, Snapshot
from ..journal.reader import pack_spec
from . import cursor_file
from .cursor_file import Cursor
from .processes import Child
from .wanted import FORWARD, KEEP_WHAT_WAITS, LATECOMERS, Wanted

_LINGER_S: Final = 1.0
"""A run whose last client has gone is closed after this, in case another joins at once."""

_FAILED_RETRY_S: Final = 30.0
"""A sink that needs a person is tried again after this: perhaps there was one."""

_MAX_LATE: Final = 8
"""Of the `LATECOMERS`, so many processes at once catch up with runs that have ended."""

_WORKER: Final = "sidestep.sidecar.worker"


@dataclass(slots=True)
class SinkHandle:
    """One sink of one run, as the daemon sees it.

    Attributes:
        state: ``idle`` (nothing to do), ``starting``, ``ok``, ``degraded`` (retrying),
            ``failed`` (will not work without a person), ``closed`` (the run has ended and
            everything is written). The last two but one stay until a try has worked.
        error: what is wrong, in words.
        trouble: what is wrong behind it while it works on: nobody there takes what it keeps.
        begun: there is a cursor on the disk. Before, nobody could say what was dropped later.
        unclosed: what was written is complete only when the sink was opened and closed once more.
        gone: records of the run that have left the journal.
        opening: its process has not said yet whether it could open the sink.
        retry_at: when it is tried again, in monotonic seconds.
    """

    run_id: int
    name: str
    child: Child
    cursor_path: str
    cursor: Cursor
    state: str = "idle"
    error: str | None = None
    trouble: str | None = None
    skipped: int = 0
    heard: float = 0.0
    told: bool = False
    hurried: bool = False
    closing: bool = False
    begun: bool = False
    unclosed: bool = False
    gone: int = 0
    opening: bool = False
    complained: bool = False
    retry_at: float = 0.0
    idle_since: float | None = None
    spec: RunSpec = field(default_factory=lambda: RunSpec("", ""))

    @property
    def total(self) -> int:
        """Records of the run that it has written, and those that it cannot write any more."""
        return max(self.cursor.total, self.gone)

    @property
    def dropped(self) -> int:
        """Records that left the journal before it came for them."""
        return self.cursor.dropped + self.total - self.cursor.total


_NONE: Final[Mapping[str, SinkHandle]] = {}


class Supervisor:
    """All sinks of all runs; lives in the daemon's main thread.

    Args:
        journal_path: what the workers read.
        journal: its identity.
        cursor_dir: where their cursors are; must exist.
        umask: for what the sinks write: the user's own, not the daemon's private one.
        log: says something to the daemon's log.
        beginning: where a run's rows begin: `JournalReader.beginning`.
        wanted: which sinks a run is to have.
        deadline_s: a worker that has something to do and says nothing for so long is killed: its
            library hangs.
        on_alarm: is told what a next daemon says of a run's health.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        journal_path: str,
        journal: int,
        cursor_dir: str,
        umask: int,
        log: Callable[[str], None],
        beginning: Callable[[int], tuple[int, int]],
        *,
        wanted: Wanted | None = None,
        deadline_s: float = 120.0,
        on_alarm: Callable[[PassedAlarm], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._umask = umask
        self._wanted = wanted or Wanted()
        self._on_alarm = on_alarm
        self._journal_path = journal_path
        self._journal = journal
        self._cursor_dir = cursor_dir
        self._log = log
        self._beginning = beginning
        self._deadline_s = deadline_s
        self._clock = clock
        self._sinks: dict[tuple[int, str], SinkHandle] = {}
        self._of_runs: dict[int, dict[str, SinkHandle]] = {}
        self._late: Counter[str] = Counter()
        self._stopping = False
        self.journal_damage: str | None = None

    def sinks(self, run_id: int | None = None) -> list[SinkHandle]:
        """The sinks of a run, or of all runs; any thread may ask, and what it gets is its own."""
        # Each in one step of the interpreter's: meanwhile the main thread may add some.
        if run_id is None:
            return list(self._sinks.values())
        return list(self._of_runs.get(run_id, _NONE).values())

    def children(self) -> Iterator[SinkHandle]:
        """Sinks that have a process, for the poller."""
        return (sink for sink in self._sinks.values() if sink.child.running)

    def lag(self, sink: SinkHandle, snapshot: Snapshot) -> int:
        """Records that the sink has not written."""
        return max(0, snapshot.totals.get(sink.run_id, 0) - sink.total)

    def is_busy(self, sink: SinkHandle, snapshot: Snapshot) -> bool:
        """Whether it has something to do, and there is hope that it will."""
        behind = sink.child.running or sink.unclosed or self.lag(sink, snapshot) > 0
        return behind and sink.state != "failed"

    def told_of(self, sink: SinkHandle) -> Mapping[str, str]:
        """What `status` says of a sink beside how it fares."""
        return self._wanted.shown(sink.name)

    def retry_in_s(self, sink: SinkHandle) -> float | None:
        """Seconds until a sink that does not work is tried again; None while it is being tried."""
        left = sink.retry_at - self._clock()
        return round(left, 1) if left > 0 and sink.error is not None else None

    def tick(self, snapshot: Snapshot, live_runs: set[int]) -> None:
        """Start, tell, close: whatever each sink needs now."""
        now = self._clock()
        self._late = Counter(sink.name for sink in self.children() if sink.run_id not in live_runs)
        for run_id, run in snapshot.runs.items():
            for name in self._wanted.sinks(run.spec):
                key = run_id, name
                if key not in self._sinks:
                    sink = self._sinks[key] = self._handle(run_id, run.spec, name)
                    self._of_runs.setdefault(run_id, {})[name] = sink
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
        sink.heard, sink.hurried = self._clock(), False
        for message in messages:
            self._take(sink, message)
        sink.told = False
        if self.lag(sink, snapshot) and sink.state == "ok":
            self._tell(sink)

    def hurry(self, sink: SinkHandle) -> None:
        """Somebody waits for this sink: what it would do after a while, it shall do now."""
        waits = sink.name in KEEP_WHAT_WAITS and sink.child.running and not sink.closing
        if waits and not sink.hurried:
            sink.hurried = True
            sink.child.tell({"op": "hurry"})

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
            run = self._sinks[key].spec
            return {
                "sink": name,
                "run_id": run_id,
                "spec": pack_spec(run),
                "settings": self._wanted.settings(name, run),
                "journal": self._journal_path,
                "cursor": path,
                "umask": self._umask,
            }

        sink = SinkHandle(
            run_id,
            name,
            # Its name is for those who look at the list of processes.
            Child([_WORKER, name], greet),
            path,
            cursor_file.load(path, self._journal),
            spec=spec,
        )
        self._begin(sink)
        return sink

    def _begin(self, sink: SinkHandle) -> None:
        """Find its cursor, or put one where the run's rows begin now."""
        found = cursor_file.find(sink.cursor_path, self._journal)
        try:
            has_it = sink.name in KEEP_WHAT_WAITS
            row, sink.gone = (0, 0) if has_it else self._beginning(sink.run_id)
            if found is None:
                # Whom the next daemon has to hear of, it must, also when there are no records.
                state = {"closed": False} if sink.name == FORWARD else None
                found = Cursor(row, sink.gone, state, self._journal)
                cursor_file.store(sink.cursor_path, found)
        except (OSError, sqlite3.Error) as error:
            sink.state, sink.error = "degraded", f"its cursor cannot be stored: {error}"
            return
        sink.cursor, sink.begun, sink.unclosed = found, True, _is_unclosed(found)

    def _tick_sink(self, sink: SinkHandle, lag: int, live: bool, now: float) -> None:
        if self._stopping:
            return
        if not sink.begun:
            self._begin(sink)
        if not sink.child.running:
            is_late = not live and sink.name in LATECOMERS
            if not is_late or self._late[sink.name] < _MAX_LATE:
                self._start(sink, lag > 0 or (live and sink.name == FORWARD), now)
                self._late[sink.name] += is_late and sink.child.running
            return
        if lag and not sink.told and not sink.closing and sink.state == "ok":
            self._tell(sink)
        if lag and not live:
            self.hurry(sink)
        if (lag or sink.opening or sink.closing) and now - sink.heard > self._deadline_s:
            self._log(f"{sink.name} of run {sink.spec.name!r} hangs: its worker is killed")
            sink.child.blame()
            sink.child.kill()
            sink.error, sink.complained = f"no answer for {self._deadline_s:g} s", True
            self._ended(sink)
            return
        if live or lag or sink.state != "ok":
            sink.idle_since = None
        elif sink.idle_since is None:
            sink.idle_since = now
        elif now - sink.idle_since > _LINGER_S and not sink.closing:
            sink.closing = True
            sink.heard = now
            sink.child.tell({"op": "close", "finished": True})

    def _start(self, sink: SinkHandle, has_work: bool, now: float) -> None:
        is_wanted = sink.begun and (has_work or sink.unclosed) and now >= sink.retry_at
        if not is_wanted or not sink.child.ensure():
            if sink.child.problem is not None:
                sink.state, sink.error = "degraded", sink.child.problem
            return
        sink.heard, sink.closing, sink.opening, sink.complained = now, False, True, False
        sink.told, sink.hurried, sink.idle_since = False, False, None
        if sink.error is None:
            sink.state = "starting"

    def _tell(self, sink: SinkHandle) -> None:
        sink.told = True
        sink.heard = self._clock()
        sink.child.tell({"op": "rows"})

    def _take(self, sink: SinkHandle, message: dict[str, Any]) -> None:
        state, error = str(message["state"]), message["error"]
        for alarm in message.get("alarms", ()):
            self._on_alarm(PassedAlarm(sink.run_id, Alarm(*alarm)))
        self.journal_damage = self.journal_damage or message["journal_damage"]
        sink.skipped = int(message["skipped"])
        sink.cursor = Cursor(
            int(message["row"]), int(message["total"]), dropped=int(message["dropped"])
        )
        if state == "starting":
            return  # what was wrong with the last try is wrong until this one has worked
        if state in ("degraded", "failed"):
            if state != sink.state:
                cannot = " cannot work" if state == "failed" else ""
                self._log(f"{sink.name} of run {sink.spec.name!r}{cannot}: {error}")
            if sink.opening:
                sink.child.blame()
            pause_s = _FAILED_RETRY_S if state == "failed" else float(message["retry_in_s"])
            sink.retry_at, sink.complained = self._clock() + pause_s, True
        sink.opening = False
        sink.state, sink.error, sink.trouble = state, error, message["trouble"]

    def _ended(self, sink: SinkHandle) -> None:
        sink.told, sink.opening, sink.trouble = False, False, None
        last = cursor_file.load(sink.cursor_path, self._journal)
        sink.unclosed = _is_unclosed(last)
        if (sink.closing and sink.state == "closed") or sink.state == "failed":
            return
        if not sink.complained:
            sink.error = f"its worker ended with code {sink.child.last_exit}"
        if sink.state != "degraded":
            self._log(f"{sink.name} of run {sink.spec.name!r}: {sink.error}")
        sink.state, sink.retry_at = "degraded", self._clock() + sink.child.pause_s


def _is_unclosed(cursor: Cursor) -> bool:
    return cursor.state is not None and cursor.state.get("closed") is False

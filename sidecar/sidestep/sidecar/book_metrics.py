"""The books of each live run as metrics: what was dropped, what waits, how far sinks are behind.

``sidestep/dropped``, ``sidestep/rejected`` and ``sidestep/held`` are records of the run so far;
``sidestep/lag`` is how many the slowest sink has not written, ``sidestep/lag_<sink>`` how many
each of them. ``sidestep/emit_us`` is what a call of `emit` takes of late, in microseconds, by the
slowest of the run's living clients; absent while none was timed. ``sidestep/step_time_s`` is from
one training step to the next, the mean of the living ranks; of several ``_std _min _max``, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from .control.stragglers import step_times
from .ingest import books
from .ingest.roster import NODE, ClientEntry, DaemonPoints, RunEntry, Snapshot
from .supervision.supervisor import SinkHandle, Supervisor

SOURCE: Final = "sidestep"
_FIRST_S: Final = 1.0


class BookMetrics:
    """Journals each live run's books; lives in the daemon's main thread.

    Args:
        interval_s: seconds between two samples of a run.
        submit: journals points.
        clock: monotonic seconds.
        now_ns: wall time in nanoseconds.
    """

    def __init__(
        self,
        interval_s: float,
        submit: Callable[[DaemonPoints], None],
        clock: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._interval_s = interval_s
        self._submit = submit
        self._clock = clock
        self._now_ns = now_ns
        self._next: float | None = None
        self._told: dict[int, dict[str, float]] = {}  # of the runs that live

    def tick(
        self,
        live: Sequence[tuple[RunEntry, ClientEntry]],
        snapshot: Snapshot,
        supervisor: Supervisor,
    ) -> None:
        """When it is time, add a sample to each live run; and a last one to a run that has ended.

        Args:
            live: the live runs.
            snapshot: what ingest knows.
            supervisor: knows the sinks.
        """
        now = self._clock()
        if self._next is None:
            if not live:
                return
            self._next = now + min(_FIRST_S, self._interval_s)
        living = {run.id for run, _ in live}
        for run_id in living:
            self._told.setdefault(run_id, {})  # it may have gone when it is time
        for run_id in self._told.keys() - living:
            told = self._told.pop(run_id)
            # Its curves shall end with what its clients said last.
            if run_id in snapshot.runs and _books(snapshot, run_id).items() - told.items():
                self._say(snapshot.runs[run_id], snapshot, supervisor)
        if now < self._next:
            return
        self._next = now + self._interval_s
        for run, _ in live:
            self._told[run.id] = self._say(run, snapshot, supervisor)

    def _say(self, run: RunEntry, snapshot: Snapshot, supervisor: Supervisor) -> dict[str, float]:
        found = _books(snapshot, run.id)
        if run.last_step is not None:  # else nothing was emitted yet: there is no step to carry
            lags = _lags(supervisor.sinks(run.id), snapshot, supervisor)
            values = {**found, **lags, **_costs(snapshot, run.id), **_times(snapshot, run.id)}
            row = run.last_step, self._now_ns(), values
            self._submit(DaemonPoints(run.id, SOURCE, scalars=[row]))
        return found


def _books(snapshot: Snapshot, run_id: int) -> dict[str, float]:
    found = books.of_clients(
        entry
        for entry in snapshot.clients
        if entry.row.run_id == run_id and entry.row.state != NODE
    )
    return {
        "sidestep/dropped": float(found.dropped),
        "sidestep/rejected": float(found.rejected),
        "sidestep/held": float(found.held),
    }


def _lags(
    sinks: Sequence[SinkHandle], snapshot: Snapshot, supervisor: Supervisor
) -> dict[str, float]:
    lags = {sink.name: float(supervisor.lag(sink, snapshot)) for sink in sinks}
    each = {f"sidestep/lag_{name}": lag for name, lag in sorted(lags.items())}
    return {"sidestep/lag": max(lags.values(), default=0.0), **each}


def _times(snapshot: Snapshot, run_id: int) -> dict[str, float]:
    return step_times(entry for entry in snapshot.clients if entry.row.run_id == run_id)


def _costs(snapshot: Snapshot, run_id: int) -> dict[str, float]:
    of_run = (entry for entry in snapshot.clients if entry.row.run_id == run_id)
    slowest_ns = max((e.session.books.emit_ns for e in of_run if e.identity is not None), default=0)
    return {"sidestep/emit_us": slowest_ns / 1e3} if slowest_ns else {}

"""The daemon's end of the exposition's process: answers its questions, knows where it listens.

The process asks, once a second at most, and waits for the answer: so there is never more than one
answer under way, and a process that does not read cannot be written full.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import msgpack

from . import alarms
from .config import SidecarSettings
from .control import status
from .exposition.address import read_token
from .ingest.roster import ClientEntry, RunEntry, Snapshot
from .supervision.processes import Child
from .supervision.supervisor import Supervisor

KEEP_S: Final = 300.0
"""A run that has ended is exposed for so long: Prometheus' own idea of what is recent."""

MAX_RUNS: Final = 100
_MAX_BYTES: Final = 128 << 10
"""Of the runs in an answer: the channel takes 200 KiB that nobody has read yet."""

_MAX_GPUS: Final = 128


class Exposing:
    """One process, if `start` finds an address; lives in the daemon's main thread.

    Args:
        journal_path: what it reads.
        supervisor: knows the sinks.
        about: who the daemon is.
        machine: GPUs and host, as the samplers see them.
        log: says something to the daemon's log.
        clock: monotonic seconds.

    Attributes:
        url: where scrapers find the metrics; None while nobody listens.
        error: why nobody does.
    """

    def __init__(
        self,
        journal_path: str,
        supervisor: Supervisor,
        about: Callable[[], dict[str, Any]],
        machine: Callable[[], tuple[list[dict[str, Any]], dict[str, Any]]],
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal_path = journal_path
        self._supervisor = supervisor
        self._about = about
        self._machine = machine
        self._log = log
        self._clock = clock
        self._child: Child | None = None
        self._started_s = time.time()
        self.url: str | None = None
        self.error: str | None = None

    def start(self, settings: SidecarSettings) -> None:
        """Have the metrics served, if there is an address for them.

        Raises:
            ValueError: the file with the token cannot be used any more.
        """
        if settings.prometheus is None:
            return
        token = settings.prometheus_token
        task = {
            "op": "start",
            "journal": self._journal_path,
            "address": settings.prometheus,
            "token": None if token is None else read_token(token),
            "max_series": settings.prometheus_max_series,
        }
        self._child = Child(["sidestep.sidecar.exposition.worker"], lambda: task)

    def fileno(self) -> int:
        """For a poller; negative while there is no process."""
        return self._child.fileno() if self._child is not None and self._child.running else -1

    def tick(self) -> None:
        """See to it that the process is there."""
        if self._child is not None:
            self._child.ensure()

    def hear(self, snapshot: Snapshot) -> None:
        """The process has said something, or has gone."""
        assert self._child is not None
        messages = self._child.hear()
        if messages is None:
            self.url, self.error = None, f"ended with code {self._child.last_exit}"
            self._log(f"prometheus: its process {self.error}; it starts again")
            return
        for message in messages:
            match message["op"]:
                case "ask":
                    self._child.tell(self.report(snapshot))
                case "listening":
                    self._listens(message["url"], message["error"])
                case _:
                    self._log(str(message["text"]))

    def kill(self) -> None:
        """End the process at once."""
        if self._child is not None:
            self._child.kill()

    def about(self) -> dict[str, Any] | None:
        """For `status`: where the metrics are, or why they are not; None when nobody wants them."""
        return None if self._child is None else {"url": self.url, "error": self.error}

    def report(self, snapshot: Snapshot) -> dict[str, Any]:
        """What the process is told: the daemon, runs that live or have just ended, the machine."""
        about = self._about()
        gpus, host = self._machine()
        runs, left_out = self._runs(snapshot)
        refused = {
            what: sum(counts.values())
            for what, counts in snapshot.refused.items()
            if isinstance(counts, dict)
        }
        return {
            "op": "status",
            "daemon": {
                "version": about["version"],
                "start_time_s": self._started_s,
                "storage_error": snapshot.storage_error is not None,
                "damaged_journals": about["damaged_journals"],
                "rows": snapshot.last_row,
                "refused": refused,
            },
            "runs": runs,
            "left_out": left_out,
            "gpus": gpus[:_MAX_GPUS],
            "host": host,
        }

    def _runs(self, snapshot: Snapshot) -> tuple[list[dict[str, Any]], int]:
        """The runs to be exposed, the newest first, and how many there is no room for."""
        clients = status.by_run(snapshot)
        now = self._clock()
        wanted = [run_id for run_id, its in clients.items() if _is_recent(its, now)]
        wanted.sort(key=lambda one: (_is_live(clients[one]), one), reverse=True)
        found: list[dict[str, Any]] = []
        room = _MAX_BYTES
        for run_id in wanted[:MAX_RUNS]:
            one = self._run(snapshot.runs[run_id], clients[run_id], snapshot)
            room -= len(cast("bytes", msgpack.packb(one)))
            if room < 0:
                break
            found.append(one)
        return found, len(wanted) - len(found)

    def _run(self, run: RunEntry, clients: list[ClientEntry], snapshot: Snapshot) -> dict[str, Any]:
        whole = status.one(run, clients, snapshot, self._supervisor)
        return {
            **{key: whole[key] for key in ("run", "state", "last_step", "attempts", "clients")},
            "id": run.id,
            "alarm_level": alarms.level(alarms.State(whole["alarm"])),
            "records": whole["records"],
            "sinks": [_plain(sink) for sink in whole["sinks"]],
        }

    def _listens(self, url: str | None, error: str | None) -> None:
        if url is not None:
            self._log(f"metrics for Prometheus are at {url}")
        elif error != self.error:
            self._log(f"prometheus: cannot listen, and will try again: {error}")
        self.url, self.error = url, error


def _is_live(clients: list[ClientEntry]) -> bool:
    return any(entry.row.state == "live" for entry in clients)


def _is_recent(clients: list[ClientEntry], now: float) -> bool:
    # An earlier daemon's clients, which this one has not heard, have no time of it: 0.
    heard = max(entry.heard for entry in clients)
    return _is_live(clients) or (heard > 0.0 and now - heard < KEEP_S)


def _plain(sink: Mapping[str, Any]) -> dict[str, Any]:
    return {key: sink[key] for key in ("name", "state", "lag_records", "skipped", "dropped")}

"""The daemon's account of itself: what `sidestep status --json` prints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .. import alarms
from ..ingest import books
from ..ingest.roster import NODE, ClientEntry, RunEntry, Snapshot
from ..supervision.supervisor import SinkHandle, Supervisor
from . import stragglers
from .total_steps import total_steps


def run_state(clients: Sequence[ClientEntry]) -> str:
    """``running`` while a client lives, else ``lost`` if one died, else ``finished``.

    A client that died is forgotten when another of its rank has gone on with what it had begun.
    """
    resumed: dict[int, int] = {}
    for entry in clients:
        if entry.trail.resumed:
            latest = max(resumed.get(entry.row.rank, 0), entry.trail.attempt)
            resumed[entry.row.rank] = latest
    states = {
        entry.row.state
        for entry in clients
        if entry.row.state != "lost" or entry.trail.attempt >= resumed.get(entry.row.rank, 0)
    }
    if "live" in states:
        return "running"
    return "lost" if "lost" in states else "finished"


def by_run(snapshot: Snapshot) -> Mapping[int, list[ClientEntry]]:
    """The clients of each run: its trainers."""
    found: dict[int, list[ClientEntry]] = defaultdict(list)
    for entry in snapshot.clients:
        if entry.row.state == NODE:
            continue
        found[entry.row.run_id].append(entry)
    return found


def runs(
    snapshot: Snapshot,
    supervisor: Supervisor,
) -> list[dict[str, Any]]:
    """One object for each run, the most recently used last."""
    clients = by_run(snapshot)
    return [
        one(run, clients.get(run_id, []), snapshot, supervisor)
        for run_id, run in sorted(snapshot.runs.items())
    ]


def one(
    run: RunEntry, clients: Sequence[ClientEntry], snapshot: Snapshot, supervisor: Supervisor
) -> dict[str, Any]:
    """The object of one run, with the clients of it."""
    sinks = [_sink(sink, snapshot, supervisor) for sink in supervisor.sinks(run.id)]
    return {**_run(run, clients), "sinks": sinks}


def _sink(sink: SinkHandle, snapshot: Snapshot, supervisor: Supervisor) -> dict[str, Any]:
    return {
        "name": sink.name,
        "state": sink.state if sink.trouble is None else "degraded",
        "lag_records": supervisor.lag(sink, snapshot),
        "error": sink.error or sink.trouble,
        **supervisor.told_of(sink),
        "retry_in_s": supervisor.retry_in_s(sink),
        "skipped": sink.skipped,
        "dropped": sink.dropped,
    }


def _run(run: RunEntry, clients: Sequence[ClientEntry]) -> dict[str, Any]:
    return {
        "run": run.spec.name,
        "state": run_state(clients),
        "last_step": run.last_step,
        "total_steps": total_steps(run.spec.config),
        "alarm": alarms.worst(run.alarms.values()).value,
        "alarms": alarms.details(run.alarms),
        "log_dir": run.spec.log_dir,
        "attempts": max((entry.trail.attempt for entry in clients), default=0),
        "clients": sum(entry.row.state == "live" for entry in clients),
        "reductions": dict(run.reductions),
        **stragglers.about(clients),
        "records": asdict(books.of_clients(clients)),
    }

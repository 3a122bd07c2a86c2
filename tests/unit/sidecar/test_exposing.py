"""What the daemon tells the exposition's process: which runs, and never more than fits."""

from __future__ import annotations

from pathlib import Path

import msgpack
import pytest

from sidestep.proto import Hello, RunSpec, ServerSession
from sidestep.sidecar.exposing import KEEP_S, MAX_RUNS, Exposing
from sidestep.sidecar.ingest.roster import ClientEntry, RunEntry, Snapshot
from sidestep.sidecar.journal.writer import ClientRow
from sidestep.sidecar.supervision.supervisor import Supervisor

NOW = 10_000.0
CHANNEL_BYTES = 200_000


def entry(run_id: int, state: str, heard: float) -> ClientEntry:
    row = ClientRow(run_id, run_id.to_bytes(16, "big"), run_id, 0, 0, 1, state, 0, 0, 0, 0, None)
    spec = RunSpec("x", "/l")
    return ClientEntry(row, ServerSession(1), Hello(bytes(16), 0, 0, spec), spec, heard=heard)


def snapshot(*clients: ClientEntry, name: str = "run") -> Snapshot:
    ids = {client.row.run_id for client in clients}
    runs = {one: RunEntry(one, RunSpec(f"{name}{one}", "/l"), last_step=1) for one in ids}
    return Snapshot(last_row=5, runs=runs, clients=clients, refused={"records": {"a": 1, "b": 2}})


@pytest.fixture
def exposing(tmp_path: Path) -> Exposing:
    supervisor = Supervisor("j", 1, str(tmp_path), 0o077, print, lambda _: (0, 0))
    about = {"version": "1", "damaged_journals": 0}
    return Exposing("j", supervisor, lambda: about, lambda: ([], {}), print, clock=lambda: NOW)


def test_runs_that_live_or_have_just_ended(exposing: Exposing) -> None:
    told = exposing.report(
        snapshot(
            entry(1, "finished", NOW - KEEP_S - 1),
            entry(2, "finished", NOW - KEEP_S + 1),
            entry(3, "live", NOW - KEEP_S - 1),  # a client of another machine that says nothing
            entry(4, "lost", NOW - 1),
            entry(5, "finished", 0.0),  # of an earlier daemon's time
            entry(6, "live", 0.0),
        )
    )
    assert [(run["id"], run["state"]) for run in told["runs"]] == [
        (6, "running"),
        (3, "running"),
        (4, "lost"),
        (2, "finished"),
    ]
    assert told["left_out"] == 0
    assert told["daemon"]["rows"] == 5
    assert told["daemon"]["refused"] == {"records": 3}


def test_the_living_come_before_the_ended_and_the_rest_is_counted(exposing: Exposing) -> None:
    ended = [entry(one, "finished", NOW - 1) for one in range(200, 300)]
    living = [entry(one, "live", NOW) for one in range(1, MAX_RUNS)]
    told = exposing.report(snapshot(*ended, *living))
    found = [run["id"] for run in told["runs"]]
    assert found == [*range(MAX_RUNS - 1, 0, -1), 299]
    assert told["left_out"] == 99


def test_an_answer_fits_into_the_channel_whatever_the_names_are(exposing: Exposing) -> None:
    long = "n" * 4000
    told = exposing.report(snapshot(*(entry(i, "live", NOW) for i in range(1, 90)), name=long))
    assert len(msgpack.packb(told)) < CHANNEL_BYTES
    assert told["left_out"] == 89 - len(told["runs"]) > 0


def test_nobody_listens_where_nobody_asked_for_it(exposing: Exposing) -> None:
    exposing.tick()
    assert (exposing.fileno(), exposing.about()) == (-1, None)

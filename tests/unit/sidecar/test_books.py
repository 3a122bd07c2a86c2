"""A run's books, from what the daemon knows and what its clients said; and the same as metrics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sidestep.proto import Books, Hello, RunSpec, ServerSession
from sidestep.sidecar.book_metrics import BookMetrics
from sidestep.sidecar.ingest.books import RunBooks, of_client, of_clients
from sidestep.sidecar.ingest.roster import ClientEntry, DaemonPoints, RunEntry, Snapshot
from sidestep.sidecar.journal.writer import ClientRow

SPEC = RunSpec("r", "/logs")


def client(state: str, durable_seq: int, dropped: int, said: Books, run_id: int = 1) -> ClientEntry:
    row = ClientRow(1, bytes(16), run_id, 0, 0, 0, state, durable_seq, dropped, 0, 0, None)
    session = ServerSession(0, durable_seq, dropped)
    session.books = said
    return ClientEntry(row, session, Hello(bytes(16), 0, 0, SPEC), SPEC)


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        (client("live", 10, 2, Books(15, 3, 1)), RunBooks(15, 8, 4, 3, 1)),
        # What has come since it spoke counts too.
        (client("live", 20, 5, Books(15, 3)), RunBooks(20, 15, 0, 5)),
        (client("finished", 10, 2, Books(13, 5)), RunBooks(13, 8, 0, 5)),
        (client("finished", 10, 0, Books(13, 1)), RunBooks(13, 10, 0, 1, unaccounted=2)),
        (client("finished", 10, 0, Books(8, 0)), RunBooks(8, 10, 0, 0, unaccounted=-2)),
        (client("lost", 10, 0, Books(13, 1)), RunBooks(13, 10, 0, 1, unaccounted=2)),
        # It could not say how many it had emitted at its end.
        (client("lost", 10, 0, Books(8, 0)), RunBooks(10, 10)),
    ],
    ids=["living", "since", "finished", "missing", "too many", "vanished", "silent"],
)
def test_books_of_a_client(entry: ClientEntry, wanted: RunBooks) -> None:
    found = of_client(entry)
    assert found == wanted
    rest = found.held + found.dropped + found.unaccounted
    assert found.emitted == found.durable + rest


def test_books_of_a_run_are_those_of_its_clients() -> None:
    first = client("finished", 10, 2, Books(13, 5))
    second = client("live", 4, 0, Books(6, 1, 2))
    assert of_clients([first, second]) == RunBooks(19, 12, 1, 6, 2)
    assert of_clients([]) == RunBooks()


class Scene:
    """Book metrics with a clock by hand, one run and two sinks."""

    def __init__(self) -> None:
        self.now = 100.0
        self.said: list[DaemonPoints] = []
        self.metrics = BookMetrics(10.0, self.said.append, lambda: self.now, lambda: 7)
        self.run = RunEntry(1, SPEC, last_step=42)
        self.entry = client("live", 10, 2, Books(15, 3, 1))
        self.lags = {"archive": 0, "tensorboard": 5}
        sinks = [SimpleNamespace(name=name) for name in self.lags]
        self.supervisor: Any = SimpleNamespace(
            sinks=lambda _run: sinks, lag=lambda sink, _snapshot: self.lags[sink.name]
        )

    def tick(self, *, live: bool = True) -> list[dict[str, float]]:
        """What a tick has journalled."""
        self.said.clear()
        snapshot = Snapshot(runs={1: self.run}, clients=(self.entry,))
        self.metrics.tick([(self.run, self.entry)] if live else [], snapshot, self.supervisor)
        assert all((p.run_id, p.source) == (1, "sidestep") for p in self.said)
        assert all(p.scalars[0][:2] == (42, 7) for p in self.said)
        return [dict(p.scalars[0][2]) for p in self.said]


FIRST = {
    "sidestep/dropped": 3.0,
    "sidestep/rejected": 1.0,
    "sidestep/held": 4.0,
    "sidestep/lag": 5.0,
    "sidestep/lag_archive": 0.0,
    "sidestep/lag_tensorboard": 5.0,
}


def test_metrics_come_a_second_after_the_first_run_and_then_each_interval() -> None:
    scene = Scene()
    assert scene.tick(live=False) == []
    assert scene.tick() == []
    scene.now += 1.0
    assert scene.tick() == [FIRST]
    scene.now += 9.9
    assert scene.tick() == []
    scene.now += 0.2
    scene.lags["tensorboard"] = 0
    assert scene.tick() == [{**FIRST, "sidestep/lag": 0.0, "sidestep/lag_tensorboard": 0.0}]


def test_a_run_that_has_ended_says_what_was_new_then() -> None:
    scene = Scene()
    scene.tick()
    scene.now += 1.0
    scene.tick()
    scene.entry = client("finished", 15, 3, Books(15, 3, 1))
    assert scene.tick(live=False) == [{**FIRST, "sidestep/held": 0.0}]
    assert scene.tick(live=False) == []


def test_a_run_that_ended_as_it_was_says_nothing_more() -> None:
    scene = Scene()
    scene.entry = client("live", 15, 3, Books(15, 3, 1))
    scene.tick()
    scene.now += 1.0
    assert scene.tick()[0]["sidestep/held"] == 0.0
    assert scene.tick(live=False) == []


def test_a_run_without_a_step_has_no_metrics() -> None:
    scene = Scene()
    scene.run.last_step = None
    scene.tick()
    scene.now += 1.0
    assert scene.tick() == []

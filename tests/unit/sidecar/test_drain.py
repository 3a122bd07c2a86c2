"""When a drain may say that everything is written, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from sidestep.proto import RunSpec
from sidestep.sidecar.control.drain import Drain
from sidestep.sidecar.control.requests import _sinks_of
from sidestep.sidecar.ingest.roster import RunEntry, Snapshot
from sidestep.sidecar.supervision.cursor_file import Cursor


@dataclass
class _Child:
    running: bool = False


@dataclass
class _Sink:
    run_id: int = 1
    name: str = "tensorboard"
    cursor: Cursor = field(default_factory=Cursor)
    state: str = "ok"
    error: str | None = None
    unclosed: bool = False
    child: _Child = field(default_factory=_Child)
    spec: RunSpec = field(default_factory=lambda: RunSpec("r", "/logs"))


@dataclass
class _Supervisor:
    all: list[_Sink]
    hurried: list[_Sink] = field(default_factory=list[_Sink])

    def sinks(self) -> list[_Sink]:
        return self.all

    def hurry(self, sink: _Sink) -> None:
        self.hurried.append(sink)


def _ask(
    drain: Drain, snapshot: Snapshot, *sinks: _Sink, live: frozenset[int] = frozenset()
) -> bool:
    drain.advance(snapshot, _Supervisor(list(sinks)), set(live))  # type: ignore[arg-type]
    return drain.done


RUN = RunEntry(1, RunSpec("r", "/logs"))
HERE = Snapshot(last_row=4, totals={1: 10}, runs={1: RUN}, scanned=1)


def test_nothing_at_all_is_done() -> None:
    assert _ask(Drain(0), Snapshot())


def test_dead_clients_come_first() -> None:
    drain, sink = Drain(2), _Sink(cursor=Cursor(4, 10))
    assert not _ask(drain, HERE, sink)
    assert not _ask(drain, replace(HERE, scanned=2, adopting=1), sink)
    assert not _ask(drain, replace(HERE, scanned=2, storage_error="full"), sink)
    assert _ask(drain, replace(HERE, scanned=2), sink)


def test_every_sink_must_have_written_what_was_there_when_it_was_asked() -> None:
    drain = Drain(1)
    fast, slow = _Sink(cursor=Cursor(4, 10)), _Sink(name="wandb", cursor=Cursor(2, 6))
    assert not _ask(drain, HERE, fast, slow)
    assert drain.reply(7) == {
        "token": 7,
        "done": False,
        "failed": None,
        "pending": [{"run": "r", "sink": "wandb", "lag_records": 4}],
    }
    later = replace(HERE, totals={1: 99}, last_row=50)
    slow.cursor = Cursor(4, 10)
    assert _ask(drain, later, fast, slow)  # what came after the question is another one's
    assert drain.reply(7)["done"]


def test_what_the_deriver_makes_of_it_counts_too() -> None:
    drain, sink = Drain(1), _Sink(cursor=Cursor(4, 10))
    behind = RunEntry(1, RUN.spec, to_derive_row=4, derived_row=2)
    assert not _ask(drain, replace(HERE, runs={1: behind}), sink)
    derived = RunEntry(1, RUN.spec, to_derive_row=4, derived_row=4)
    more = replace(HERE, runs={1: derived}, totals={1: 11}, last_row=5)
    assert not _ask(drain, more, sink)
    sink.cursor = Cursor(5, 11)
    assert _ask(drain, more, sink)


def test_sinks_of_a_run_that_has_ended_are_closed_first() -> None:
    drain, sink = Drain(1), _Sink(cursor=Cursor(4, 10), child=_Child(running=True))
    assert not _ask(drain, HERE, sink)
    assert _ask(drain, HERE, sink, live=frozenset({1}))
    other = Drain(1)
    sink.child.running, sink.unclosed = False, True  # its next worker has not started yet
    assert not _ask(other, HERE, sink)
    sink.unclosed = False
    assert _ask(other, HERE, sink)


def test_a_sink_that_cannot_work_is_said_at_once() -> None:
    drain = Drain(1)
    broken = _Sink(name="wandb", state="failed", error="pip install it", cursor=Cursor(0, 0))
    assert not _ask(drain, HERE, broken)
    assert "wandb" in drain.reply(1)["failed"]
    assert "pip install it" in drain.reply(1)["failed"]
    unfinished = _Sink(name="wandb", state="failed", cursor=Cursor(4, 10), unclosed=True)
    drain = Drain(1)
    assert not _ask(drain, HERE, unfinished)
    assert "wandb" in drain.reply(1)["failed"]


def test_only_the_sinks_that_were_named_are_waited_for() -> None:
    behind = _Sink(name="wandb")
    archive = _Sink(name="archive", cursor=Cursor(3, 9), child=_Child(running=True))
    drain = Drain(0, lambda sink: sink.name == "archive")
    assert not _ask(drain, HERE, behind, archive)
    assert drain.pending == [(archive, 1)]
    archive.cursor = Cursor(4, 10)
    assert _ask(drain, HERE, behind, archive)  # it need not be closed


@pytest.mark.parametrize("name", ["x" * 5000, ["x"], 5, None], ids=type)
def test_a_question_for_sinks_names_them_with_names(name: object) -> None:
    """A drain is kept until it is over, and a thousand of them with what they asked for."""
    with pytest.raises(ValueError, match="not a name"):
        _sinks_of({"op": "drain", "run": name})
    assert _sinks_of({"op": "drain"}) is None
    assert _sinks_of({"op": "drain", "run": "r"}) is not None


def test_who_is_behind_is_told_that_somebody_waits() -> None:
    behind, done = _Sink(cursor=Cursor(3, 9)), _Sink(cursor=Cursor(4, 10))
    supervisor = _Supervisor([behind, done])
    Drain(0).advance(HERE, supervisor, {1})  # type: ignore[arg-type]
    assert supervisor.hurried == [behind]

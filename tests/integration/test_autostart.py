"""A client that finds no daemon starts one, once, and that one leaves when nobody needs it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.fixtures import Connect, Train
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)


def test_daemon_comes_with_the_client_and_leaves_when_all_is_written(
    sandbox: Sandbox, train: Train
) -> None:
    run = train(run="auto", emits=5000, tags=8)
    stats = run.finished()
    assert stats["finish"]
    assert run.record["connect_ns"] < 1e9
    pid = sandbox.daemon_pid()
    assert pid is not None
    sandbox.await_no_daemon()
    assert_exactly(read_scalars(sandbox.event_files("auto")), run.emitted(5000))
    wait_until(lambda: not sandbox.processes(), 10, sandbox.processes)
    asked = sandbox.cli("status", "--json")
    assert (asked.returncode, asked.stdout) == (1, '{"daemon": null}\n')


def test_many_ranks_start_one_daemon(sandbox: Sandbox, train: Train) -> None:
    runs = [train(run=f"rank{k}", emits=200, tags=3, seed=k, end="wait") for k in range(4)]
    for run in runs:
        sandbox.await_run(run.plan.run, state="running")
    assert len(sandbox.daemons()) == 1
    for run in runs:
        run.record["release"] = 1
    for run in runs:
        assert run.finished()["finish"]
    sandbox.drain()
    for run in runs:
        assert_exactly(read_scalars(sandbox.event_files(run.plan.run)), run.emitted(200))


def test_one_that_was_started_by_hand_stays(sandbox: Sandbox, connect: Connect) -> None:
    daemon = sandbox.serve(SIDESTEP_IDLE_S="0.2")
    made = connect("stays")
    made.emit({"a": 1.0}, step=0)
    assert made.finish(30)
    sandbox.await_sink("stays", "closed")
    uptime = sandbox.status()["daemon"]["uptime_s"]
    wait_until(lambda: sandbox.status()["daemon"]["uptime_s"] > uptime + 1.5, 30, "status")
    assert daemon.process.poll() is None


def test_second_client_finds_it(sandbox: Sandbox, connect: Connect) -> None:
    first = connect("first", autostart=True)
    first.emit({"a": 1.0}, step=0)
    assert first.flush(30)
    pid = sandbox.daemon_pid()
    second = connect("second", autostart=True)
    second.emit({"a": 2.0}, step=0)
    assert second.finish(30)
    assert first.finish(30)
    assert sandbox.daemon_pid() == pid
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("second")), points([("a", 0, 2.0)]))


def test_daemon_that_cannot_start_is_said_once(sandbox: Sandbox, train: Train) -> None:
    """Its reason is in its log; the trainer trains, and exits in time."""
    sandbox.state.write_text("a file where the directory should be")
    run = train(run="cannot", emits=2000, interval_s=0.002, finish_timeout_s=0.5)
    began = time.monotonic()
    stats = run.finished()
    assert time.monotonic() - began < 30
    assert not stats["finish"]
    assert stats["held"] == 2000
    assert run.said().count(f"its last words are in {sandbox.paths.log}") == 1
    assert str(sandbox.state) in Path(sandbox.paths.log).read_text()
    sandbox.state.unlink()
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("cannot")), run.emitted(2000))


def test_user_stopped_the_daemon_before(sandbox: Sandbox, train: Train) -> None:
    """`stop` holds for the clients that ran then; a new one starts a daemon again."""
    sandbox.serve()
    old = train(run="old", emits=100, tags=2, end="wait")
    sandbox.await_run("old", state="running")
    assert sandbox.cli("stop").returncode == 0
    new = train(run="new", emits=100, tags=2)
    assert new.finished()["finish"]
    old.record["release"] = 1
    assert old.finished()["finish"]

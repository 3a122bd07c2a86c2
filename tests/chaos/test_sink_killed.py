"""A sink's worker is killed, again and again: TensorBoard still shows each number once."""

from __future__ import annotations

import random
import time

import pytest

from tests.support.fixtures import Train
from tests.support.oracle import assert_booked, assert_exactly, read_scalars
from tests.support.sandbox import Process, Sandbox
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

EMITS = 5000


def test_tensorboard_worker_is_killed_repeatedly(sandbox: Sandbox, train: Train) -> None:
    seed = 11
    choose = random.Random(seed)
    moments = sorted(choose.sample(range(200, EMITS * 3 // 4), 3))
    print(f"seed {seed}: killed after emits {moments} and a moment more")
    daemon = sandbox.serve()
    run = train(run="worker", emits=EMITS, tags=4, seed=seed, interval_s=0.001, connect={})
    dead: set[int] = set()
    for moment in moments:
        run.await_begun(moment)
        worker = next_worker(sandbox, dead)
        time.sleep(choose.uniform(0.0, 0.1))  # anywhere between two commits
        worker.kill()
        dead.add(worker.pid)
    sink = sandbox.await_run("worker")["sinks"][0]
    assert sink["name"] == "tensorboard"
    stats = run.finished()
    assert stats["finish"], "a broken sink is no reason for finish to fail"
    sandbox.drain()
    assert daemon.process.poll() is None
    assert_exactly(read_scalars(sandbox.event_files("worker")), run.emitted(EMITS))
    assert len(sandbox.event_files("worker")) == 1
    assert_booked(sandbox.await_run("worker", state="finished"), EMITS)


def test_worker_that_died_is_visible(sandbox: Sandbox, train: Train) -> None:
    sandbox.serve()
    run = train(run="seen", emits=4000, tags=2, interval_s=0.001, connect={"autostart": False})
    dead: set[int] = set()
    for _ in range(2):
        worker = next_worker(sandbox, dead)
        sandbox.await_sink("seen", "ok")
        worker.kill()
        dead.add(worker.pid)
        sink = sandbox.await_sink("seen", "degraded")
        assert "ended" in sink["error"]
    sandbox.await_sink("seen", "ok")
    assert run.finished()["finish"]
    sandbox.drain()
    sink = sandbox.await_run("seen", state="finished")["sinks"][0]
    assert (sink["lag_records"], sink["error"]) == (0, None)


def test_worker_of_one_run_does_not_delay_another(sandbox: Sandbox, train: Train) -> None:
    sandbox.serve()
    first = train(run="first", emits=3000, tags=2, interval_s=0.001, end="wait")
    worker = next_worker(sandbox, set())
    sandbox.await_sink("first", "ok")
    worker.suspend()
    second = train(run="second", emits=500, tags=2)
    assert second.finished()["finish"]
    sandbox.await_sink("second", "closed")
    assert_exactly(read_scalars(sandbox.event_files("second")), second.emitted(500))
    first.await_begun(3000)
    assert sandbox.await_run("first")["sinks"][0]["lag_records"] > 0
    worker.resume()
    first.record["release"] = 1
    assert first.finished()["finish"]
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("first")), first.emitted(3000))


def next_worker(sandbox: Sandbox, dead: set[int]) -> Process:
    """A worker of TensorBoard's that is not one of `dead`."""
    return wait_until(
        lambda: [p for p in sandbox.workers("tensorboard") if p.pid not in dead],
        60,
        "no worker came",
    )[0]

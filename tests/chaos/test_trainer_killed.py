"""The trainer dies, of whatever: every emit that returned is in the event file, once."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.support.fixtures import Train
from tests.support.oracle import (
    assert_balanced,
    assert_booked,
    assert_exactly,
    points,
    read_scalars,
)
from tests.support.sandbox import Sandbox
from tests.support.trainer import EMITTED
from tests.support.training import Training

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

EMITS = 6000
TAGS = 5
AWAY = {"autostart": False}


def assert_all_that_returned(sandbox: Sandbox, run: Training) -> int:
    """All emits that returned are written, once; perhaps the one that was under way, whole."""
    found = read_scalars(sandbox.event_files(run.plan.run))
    written = run.begun if found.total() == run.begun * run.plan.tags else run.returned
    assert_exactly(found, run.emitted(written))
    return written


def test_killed_beside_a_living_daemon(sandbox: Sandbox, train: Train) -> None:
    check_killed(sandbox, train, range(6))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(6, 106, 20))
def test_a_hundred_trainers_killed(sandbox: Sandbox, train: Train, first: int) -> None:
    """A hundred seeds, twenty beside each daemon."""
    check_killed(sandbox, train, range(first, first + 20))


def check_killed(sandbox: Sandbox, train: Train, seeds: range) -> None:
    """One trainer for each seed, killed at a moment that the seed says."""
    sandbox.serve()
    runs: list[Training] = []
    for seed in seeds:
        moment = random.Random(seed).randrange(1, EMITS)
        # In a burst the SIGKILL meets an emit; paced, it meets the sender and acknowledgements.
        pace_s = 0.0 if seed % 2 else 0.0003
        run = train(
            run=f"killed-{seed}", emits=EMITS, tags=TAGS, seed=seed, interval_s=pace_s, end="wait"
        )
        run.await_begun(moment)
        run.kill()
        runs.append(run)
        print(f"seed {seed}: killed at emit {run.begun}, wanted {moment}; {run.latency()}")
    states = [sandbox.await_run(run.plan.run, state="lost", clients=0) for run in runs]
    sandbox.drain()
    for run, status in zip(runs, states, strict=True):
        assert_booked(status, assert_all_that_returned(sandbox, run))
    assert sandbox.outboxes() == []


@pytest.mark.parametrize(
    "seed", [100, 101, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(102, 120))]
)
def test_killed_and_the_daemon_dead_too(sandbox: Sandbox, train: Train, seed: int) -> None:
    choose = random.Random(seed)
    daemon_dies = choose.randrange(1, EMITS // 2)
    trainer_dies = choose.randrange(daemon_dies, EMITS)
    daemon = sandbox.serve()
    run = train(
        run="both", emits=EMITS, tags=TAGS, seed=seed, interval_s=0.0002, end="wait", connect=AWAY
    )
    run.await_begun(daemon_dies)
    daemon.kill()
    run.await_begun(trainer_dies)
    run.kill()
    print(f"seed {seed}: daemon killed at emit {daemon_dies}, trainer at {run.begun}")
    assert len(sandbox.outboxes()) == 1

    sandbox.serve()
    sandbox.drain()
    written = assert_all_that_returned(sandbox, run)
    status = sandbox.run_status("both")
    assert status
    assert_booked(status, written)
    assert status["state"] == "lost"
    assert sandbox.outboxes() == []


def test_killed_before_any_daemon_was_there(sandbox: Sandbox, train: Train) -> None:
    """`drain` finds what is left, and starts a daemon for it."""
    run = train(run="never", emits=500, tags=TAGS, seed=7, end="wait", connect=AWAY)
    run.await_state(EMITTED)
    run.kill()
    assert sandbox.daemon_pid() is None
    sandbox.drain()
    assert_all_that_returned(sandbox, run)


def test_daemon_is_killed_while_it_adopts(sandbox: Sandbox, train: Train) -> None:
    """An outbox that was half taken is taken on from there, by as many daemons as it needs."""
    choose = random.Random(5)
    emits = 8000
    run = train(run="adopted", emits=emits, tags=4, seed=5, end="wait", connect=AWAY)
    run.await_state(EMITTED)
    run.kill()
    for _ in range(3):
        daemon = sandbox.serve()
        time.sleep(choose.uniform(0.0, 0.4))  # the moment is what is drawn
        daemon.kill()
    sandbox.serve()
    sandbox.drain()
    assert_all_that_returned(sandbox, run)
    status = sandbox.run_status("adopted")
    assert status
    assert_booked(status, emits)


def test_killed_with_large_values_under_way(sandbox: Sandbox, train: Train) -> None:
    run = train(run="large", emits=400, tags=2, seed=1, interval_s=0.001, text_every=10, end="wait")
    run.await_begun(317)
    run.kill()
    status = sandbox.await_run("large", state="lost")
    sandbox.drain()
    written = assert_all_that_returned(sandbox, run)
    texts = status["records"]["durable"] - written
    assert texts in (run.plan.texts(run.returned) - 1, run.plan.texts(run.returned))


@pytest.mark.parametrize(
    ("end", "code"), [("return", 0), ("raise", 1), ("exit", 3)], ids=["return", "raise", "sys.exit"]
)
def test_ends_without_finish(sandbox: Sandbox, train: Train, end: str, code: int) -> None:
    sandbox.serve()
    run = train(run="ended", emits=2000, tags=TAGS, seed=2, end=end)
    assert run.wait() == code, run.said()
    assert sandbox.outboxes() == []
    status = sandbox.await_run("ended", state="finished")
    assert_booked(status, 2000)
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("ended")), run.emitted())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT])
def test_ended_by_a_signal(sandbox: Sandbox, train: Train, number: signal.Signals) -> None:
    """SIGTERM as torchrun sends it, and what a crash in native code looks like."""
    sandbox.serve()
    run = train(run="signalled", emits=EMITS, tags=TAGS, seed=4, interval_s=0.0005, end="wait")
    run.await_begun(900)
    run.process.send_signal(number)
    assert run.wait() == -number
    sandbox.await_run("signalled", state="lost")
    sandbox.drain()
    assert_all_that_returned(sandbox, run)


def test_many_trainers_killed_at_once(sandbox: Sandbox, train: Train) -> None:
    sandbox.serve()
    runs = [
        train(run=f"rank{k}", emits=3000, tags=3, seed=k, interval_s=0.0005, end="wait")
        for k in range(4)
    ]
    for run in runs:
        run.await_begun(500)
    for run in runs:
        run.process.send_signal(signal.SIGKILL)
    for run in runs:
        run.wait()
    for run in runs:
        sandbox.await_run(run.plan.run, state="lost")
    sandbox.drain()
    for run in runs:
        assert_all_that_returned(sandbox, run)


def test_one_of_two_trainers_of_a_run_is_killed(sandbox: Sandbox, train: Train) -> None:
    """The run goes on with the other, and then counts as lost: somebody should look."""
    sandbox.serve()
    dies = train(run="shared", emits=1000, tags=2, seed=1, interval_s=0.001, end="wait")
    lives = train(run="shared", emits=1000, tags=2, seed=2, interval_s=0.001, end="finish")
    dies.await_begun(300)
    dies.kill()
    stats = lives.finished()
    assert stats["finish"]
    assert_balanced(stats)
    sandbox.await_run("shared", state="lost", clients=0)
    sandbox.drain()
    found = read_scalars(sandbox.event_files("shared"))
    of_dead = found - lives.emitted(1000)
    assert_exactly(of_dead, points(dies.plan.rows(of_dead.total() // 2)))
    assert dies.returned <= of_dead.total() // 2 <= dies.begun
    assert_exactly(found - of_dead, lives.emitted(1000))

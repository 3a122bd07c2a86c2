"""SIGTERM, SIGINT twice, SIGKILL while it drains: the journal is sound, and leaving is bounded."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.fixtures import Connect, Train
from tests.support.journal_file import assert_sound
from tests.support.oracle import assert_exactly, read_scalars
from tests.support.sandbox import Daemon, Sandbox
from tests.support.trainer import EMITTED
from tests.support.training import Training
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from psutil import Process

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
DRAIN_S = 1.0
CLOSE_S = 3.0 + 1.0
"""What workers get to close, and a second for one that must be killed."""

SLACK_S = 6.0
"""Everything else that a daemon does when it leaves, on a machine that others use, too."""


def test_killed_while_it_drains(sandbox: Sandbox, train: Train) -> None:
    check_killed_while_it_drains(sandbox, train, times=1, emits=2_000)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_while_it_drains_many_times(sandbox: Sandbox, train: Train) -> None:
    check_killed_while_it_drains(sandbox, train, times=40, emits=20_000)


def check_killed_while_it_drains(sandbox: Sandbox, train: Train, *, times: int, emits: int) -> None:
    """SIGTERM at a random emit, SIGKILL a random moment later; what was left is written once."""
    print(f"seed: {SEED}")
    rng = random.Random(SEED)
    run = train(
        run="terminated",
        emits=emits,
        tags=20,
        text_every=20,  # there is something to drain
        limit=1,
        connect={"autostart": False},
    )
    drained = 0
    for number in range(times):
        daemon = sandbox.serve()
        sandbox.await_run("terminated", state="running")
        share = emits * (number + 1) // times
        run.record["limit"] = share
        run.await_begun(rng.randint(emits * number // times + 1, share))
        daemon.process.terminate()
        killed_after_s = rng.expovariate(1 / 0.15)
        if wait_for_end(daemon, killed_after_s):
            drained += 1
        else:
            daemon.kill()
        assert_sound(sandbox)
    print(f"{times} SIGTERMs, after {drained} of which it had drained before the SIGKILL")
    run.record["limit"] = 0
    sandbox.serve()
    assert run.finished()["finish"]
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("terminated")), run.emitted(emits))
    assert_sound(sandbox)


def wait_for_end(daemon: Daemon, timeout_s: float) -> bool:
    """Whether it ends by itself in this time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if daemon.process.poll() is not None:
            return True
        time.sleep(0.005)
    return False


# --- bounded, whatever a sink does ---------------------------------------------------------------


def stuck(sandbox: Sandbox, train: Train, **env: str) -> tuple[Daemon, Training, Process]:
    """A daemon, a trainer that has emitted, and a worker that stands still in the middle."""
    daemon = sandbox.serve(**env)
    run = train(
        run="stuck",
        emits=4000,
        tags=10,
        limit=2000,
        end="wait",
        finish_timeout_s=0.2,
        connect={"autostart": False},
    )
    (worker,) = wait_until(lambda: sandbox.workers("tensorboard"), 30, daemon.said)
    wait_until(lambda: sandbox.event_files("stuck"), 30, daemon.said)
    worker.suspend()
    run.record["limit"] = 0
    run.await_state(EMITTED)
    return daemon, run, worker


def assert_all_arrives(sandbox: Sandbox, run: Training) -> None:
    """The next daemon writes what this one could not."""
    assert_sound(sandbox)
    run.record["release"] = 1
    run.wait()
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("stuck")), run.emitted(4000))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_drain_is_bounded(sandbox: Sandbox, train: Train) -> None:
    """SIGTERM once, and a sink that does not move: it leaves in time, and leaves no process."""
    daemon, run, worker = stuck(sandbox, train, SIDESTEP_DRAIN_TIMEOUT_S=str(DRAIN_S))
    began = time.monotonic()
    assert daemon.terminate(60) == 0
    took_s = time.monotonic() - began
    print(f"a drain of at most {DRAIN_S} s with a sink that stands still took {took_s:.2f} s")
    assert DRAIN_S <= took_s < DRAIN_S + CLOSE_S + SLACK_S
    assert not worker.is_running()
    assert {p.pid for p in sandbox.processes()} <= {run.process.pid}
    assert_all_arrives(sandbox, run)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_interrupted_twice_while_others_drain(
    sandbox: Sandbox, train: Train, connect: Connect
) -> None:
    """The second SIGINT ends the waiting of the first, of `drain`, and for the workers."""
    daemon, run, _ = stuck(sandbox, train, SIDESTEP_DRAIN_TIMEOUT_S="600")
    with sandbox.popen("drain") as draining:
        made = connect("beside")
        made.emit({"a": 1.0}, step=0)
        assert made.flush(30)
        daemon.process.send_signal(signal.SIGINT)
        wait_until(lambda: "stopping" in daemon.said(), 20, daemon.said)
        # It goes on to serve while it drains.
        made.emit({"a": 2.0}, step=1)
        assert made.flush(30)
        assert daemon.process.poll() is None
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(60) == 0
        took_s = time.monotonic() - began
        print(f"the second SIGINT ended it within {took_s:.2f} s")
        assert took_s < CLOSE_S + SLACK_S
        # It was told to wait until all is written, and starts a daemon that can.
        _, said = draining.communicate(timeout=60)
        assert (draining.returncode, said) == (0, "")
    assert "Traceback" not in daemon.said()
    assert_all_arrives(sandbox, run)

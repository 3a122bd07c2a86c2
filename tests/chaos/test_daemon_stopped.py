"""The daemon is stopped (SIGSTOP) and goes on later: no emit waits for it, and nothing is lost."""

from __future__ import annotations

import pytest

from tests.support.fixtures import Train
from tests.support.oracle import assert_balanced, assert_booked, assert_exactly, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.trainer import EMITTED
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

LIMIT_MS = 5.0
SLACK = 3
"""Emits over the limit that are allowed beyond those of the stand-in: two processes on one machine
are never interrupted equally often."""

WORST_MS = 250.0
"""No interruption by the machine is so long; waiting for a stopped daemon would be."""


def test_no_emit_waits_for_a_stopped_daemon(sandbox: Sandbox, train: Train) -> None:
    check_stopped(sandbox, train, stopped_s=4, interval_s=0.002)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_emit_waits_for_a_daemon_stopped_for_a_minute(sandbox: Sandbox, train: Train) -> None:
    check_stopped(sandbox, train, stopped_s=60, interval_s=0.002)


def check_stopped(sandbox: Sandbox, train: Train, *, stopped_s: float, interval_s: float) -> None:
    """Stop the daemon in the middle; count long emits beside those of a stand-in at the same time.

    The stand-in does work of the same kind at the same pace in another process: what interrupts
    that one is the machine. Without one, this test would measure its neighbours.
    """
    before = round(1.0 / interval_s)
    during = round(stopped_s / interval_s)
    emits = before + during + before
    daemon = sandbox.serve()
    plan = {"emits": emits, "tags": 20, "interval_s": interval_s}
    run = train(run="stopped", **plan, connect={"autostart": False})
    beside = train(
        run="stand-in", **plan, stand_in=True, end="return", env={"SIDESTEP_DISABLED": "1"}
    )
    run.await_begun(before)
    wait_until(
        lambda: sandbox.await_run("stopped", state="running")["records"]["durable"] > 0,
        30,
        "nothing is durable before it is stopped",
    )
    daemon.pause()
    first = run.begun + 5
    run.await_begun(before + during, 60 + 3 * stopped_s)
    last = run.begun - 5
    daemon.resume()

    stats = run.finished()
    beside.await_state(EMITTED)
    ours, theirs = run.over(LIMIT_MS, first, last), beside.over(LIMIT_MS, first, last)
    print(f"while stopped: {run.latency(first, last)}; over {LIMIT_MS} ms: {ours}")
    print(f"the stand-in:  {beside.latency(first, last)}; over {LIMIT_MS} ms: {theirs}")
    assert len(ours) <= len(theirs) + SLACK
    assert run.worst_ms(first, last) < max(WORST_MS, 2 * beside.worst_ms(first, last))

    assert stats["finish"]
    assert_balanced(stats)
    assert (stats["acked"], stats["dropped"]) == (emits, 0)
    assert_booked(sandbox.await_run("stopped", state="finished"), emits)
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("stopped")), run.emitted(emits))


def test_what_is_asked_of_a_stopped_daemon_ends_in_time(sandbox: Sandbox, train: Train) -> None:
    """`flush` and `finish` keep their timeouts, the commands theirs, and it all arrives later."""
    daemon = sandbox.serve()
    run = train(
        emits=3000,
        tags=5,
        interval_s=0.0003,
        finish_timeout_s=1.0,
        connect={"autostart": False},
    )
    run.await_begun(1000)
    daemon.pause()
    stats = run.finished()
    assert not stats["finish"]
    assert stats["finish_s"] < 3.0
    assert stats["held"] > 0
    assert_balanced(stats)

    asked = sandbox.cli("status", "--json", timeout_s=20)
    assert asked.returncode == 1
    assert '"unresponsive"' in asked.stdout
    asked = sandbox.cli("drain", "--timeout", "1", timeout_s=20)
    assert asked.returncode == 1, asked.stdout

    daemon.resume()
    wait_until(lambda: not sandbox.outboxes(), 30, "the outbox is not adopted")
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("run")), run.emitted(3000))


def test_killed_while_stopped(sandbox: Sandbox, train: Train) -> None:
    daemon = sandbox.serve()
    run = train(emits=4000, tags=5, interval_s=0.0003, limit=3000, connect={"autostart": False})
    run.await_begun(1000)
    daemon.pause()
    run.await_begun(2000)
    daemon.kill()
    daemon.resume()
    sandbox.serve()
    run.record["limit"] = 0
    assert run.finished()["finish"]
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("run")), run.emitted(4000))

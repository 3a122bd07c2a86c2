"""The daemon is killed, again and again: nothing is lost, nothing comes twice."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.support.fixtures import Train
from tests.support.oracle import assert_balanced, assert_booked, assert_exactly, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

KILLS = 10
EMITS = 10_000
TAGS = 20
LEEWAY = 400
"""Emits that go on while the daemon is dead, before the trainer waits for the next kill."""


def test_ten_kills_at_random_moments(sandbox: Sandbox, train: Train) -> None:
    check_kills(sandbox, train, seed=int(os.environ.get("CHAOS_SEED", "1")), emits=EMITS)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(2, 8))
def test_ten_kills_with_more_seeds(sandbox: Sandbox, train: Train, seed: int) -> None:
    check_kills(sandbox, train, seed=seed, emits=EMITS)


def check_kills(sandbox: Sandbox, train: Train, *, seed: int, emits: int) -> None:
    """Kill the daemon at moments that are given in emits; by turns in each phase of its life."""
    choose = random.Random(seed)
    moments = sorted(choose.sample(range(emits // 50, emits * 19 // 20), KILLS))
    print(f"seed {seed}: killed at emits {moments}")
    sandbox.serve()
    run = train(
        run="kills",
        emits=emits,
        tags=TAGS,
        seed=seed,
        interval_s=0.001,
        limit=moments[0] + LEEWAY,
    )
    for number, moment in enumerate(moments):
        run.await_begun(moment)
        dead = kill_daemon(sandbox, while_starting=number % 3 == 2)
        killed_at = time.monotonic()
        following = moments[number + 1] + LEEWAY if number + 1 < KILLS else 0
        run.record["limit"] = following
        by_hand = choose.random() < 0.5
        if by_hand:
            done = sandbox.cli("start")
            assert done.returncode == 0, done.stderr
        pid = sandbox.await_daemon(other_than=dead)
        print(
            f"kill {number} at emit {moment}: pid {dead}; {pid} answered after "
            f"{time.monotonic() - killed_at:.1f} s,",
            "started by hand" if by_hand else "started by the client",
        )

    stats = run.finished(120)
    assert stats["finish"]
    assert_balanced(stats)
    assert (stats["emitted"], stats["acked"]) == (emits, emits)
    assert_booked(sandbox.await_run("kills", state="finished"), emits)
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("kills")), run.emitted(emits))
    assert len(sandbox.event_files("kills")) == 1
    assert sandbox.outboxes() == []


def kill_daemon(sandbox: Sandbox, *, while_starting: bool) -> int:
    """SIGKILL the daemon; with `while_starting` once more, as soon as the next one appears."""
    pid = sandbox.await_daemon()
    os.kill(pid, signal.SIGKILL)
    if not while_starting:
        return pid
    starting = wait_until(
        lambda: [p for p in sandbox.daemons() if p.pid != pid], 60, "the client started no daemon"
    )[0]
    starting.kill()
    return starting.pid


def test_no_process_outlives_the_daemon(sandbox: Sandbox, train: Train) -> None:
    daemon = sandbox.serve()
    run = train(emits=100, end="wait", connect={"autostart": False})
    sandbox.await_sink("run", "ok")
    workers = sandbox.workers()
    assert workers
    left = [p for p in psutil.Process(daemon.pid).children(recursive=True)]
    daemon.kill()
    _, alive = psutil.wait_procs(left, timeout=5.0)
    assert not alive, [p.cmdline() for p in alive]
    assert run.process.poll() is None


def test_torn_tail_of_an_event_file_is_cut(sandbox: Sandbox, train: Train) -> None:
    """What a worker wrote after its last commit, whole or torn, is written again, once."""
    daemon = sandbox.serve()
    first = train(run="torn", emits=200, tags=3, seed=1)
    assert first.finished()["finish"]
    sandbox.await_sink("torn", "closed")
    (file,) = sandbox.event_files("torn")
    daemon.kill()
    whole = file.read_bytes()
    file.write_bytes(whole + whole[-100:] + whole[:37])

    sandbox.serve()
    # The same steps again, by another trainer of the run.
    second = train(run="torn", emits=100, tags=3, seed=2)
    assert second.finished()["finish"]
    sandbox.drain()
    assert_exactly(
        read_scalars(sandbox.event_files("torn")), first.emitted(200) + second.emitted(100)
    )


def test_killed_with_its_workers(sandbox: Sandbox, train: Train) -> None:
    """As by the out-of-memory killer of a whole container, in the middle of a burst."""
    emits = 20_000
    run = train(
        run="burst", emits=emits, tags=4, seed=3, limit=emits // 2, connect={"autostart": False}
    )
    for _ in range(2):
        daemon = sandbox.serve()
        wait_until(lambda: sandbox.event_files("burst"), 60, "no event file")
        for process in [psutil.Process(daemon.pid), *psutil.Process(daemon.pid).children(True)]:
            process.kill()
        daemon.process.wait(30)
        run.record["limit"] = 0
    sandbox.serve()
    assert run.finished()["finish"]
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("burst")), run.emitted(emits))


def test_cursor_of_the_future_is_not_believed(sandbox: Sandbox, train: Train) -> None:
    """The state directory is put back from an older copy... the journal alone, or lost."""
    daemon = sandbox.serve()
    first = train(run="lost-state", emits=300, tags=2, seed=1)
    assert first.finished()["finish"]
    sandbox.await_sink("lost-state", "closed")
    daemon.kill()
    for file in Path(sandbox.state).glob("journal.sqlite*"):
        file.unlink()

    sandbox.serve()
    second = train(run="lost-state", emits=200, tags=2, seed=2)
    assert second.finished()["finish"]
    sandbox.drain()
    assert_exactly(
        read_scalars(sandbox.event_files("lost-state")), first.emitted(300) + second.emitted(200)
    )

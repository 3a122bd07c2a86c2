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
LEEWAY = 300
"""Emits that go on while the daemon is dead, before the trainer waits for the next one."""


def test_kills_at_random_moments(sandbox: Sandbox, train: Train) -> None:
    seed = int(os.environ.get("CHAOS_SEED", "1"))
    check_kills(sandbox, train, seed=seed, emits=EMITS // 4, kills=3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(2, 12))
def test_a_hundred_kills(sandbox: Sandbox, train: Train, seed: int) -> None:
    """Ten runs with ten SIGKILLs each."""
    check_kills(sandbox, train, seed=seed, emits=EMITS)


def check_kills(
    sandbox: Sandbox, train: Train, *, seed: int, emits: int, kills: int = KILLS
) -> None:
    """Kill the daemon at moments that are counted in emits, one in each equal part of the run."""
    choose = random.Random(seed)
    part = emits // kills
    moments = [k * part + choose.randrange(50, part - LEEWAY - 50) for k in range(kills)]
    print(f"seed {seed}: killed at emits {moments}")
    sandbox.serve()
    run = train(run="kills", emits=emits, tags=TAGS, seed=seed, interval_s=0.001, limit=1)
    durable = 0
    for number, moment in enumerate(moments):
        # Whatever there was before it, this daemon has taken something: it is no crash loop.
        durable = await_more(sandbox, "kills", durable)
        run.record["limit"] = moment + LEEWAY
        run.await_begun(moment)
        killed_at = time.monotonic()
        dead = kill_daemon(sandbox, while_starting=number % 4 == 2)
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
    run.record["limit"] = 0

    stats = run.finished(120)
    assert stats["finish"]
    assert_balanced(stats)
    assert (stats["emitted"], stats["acked"]) == (emits, emits)
    assert_booked(sandbox.await_run("kills", state="finished"), emits)
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("kills")), run.emitted(emits))
    assert len(sandbox.event_files("kills")) == 1
    assert sandbox.outboxes() == []


def await_more(sandbox: Sandbox, run: str, durable: int) -> int:
    """Wait until more than `durable` records of the run are durable; how many they are."""

    def now() -> int:
        status = sandbox.run_status(run)
        many: int = status["records"]["durable"] if status else 0
        return many if many > durable else 0

    return wait_until(now, 60, lambda: f"no more than {durable}: {sandbox.run_status(run)}")


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
    left = psutil.Process(daemon.pid).children(recursive=True)
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
    emits = 8000
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


@pytest.mark.parametrize("damage", ["overwritten", pytest.param("lost", marks=pytest.mark.slow)])
def test_damaged_journal_costs_only_what_was_in_it(
    sandbox: Sandbox, train: Train, damage: str
) -> None:
    """What is emitted afterwards is written, although the sinks' cursors are of the old journal."""
    daemon = sandbox.serve()
    first = train(run="damaged", emits=300, tags=2, seed=1)
    assert first.finished()["finish"]
    sandbox.await_sink("damaged", "closed")
    assert daemon.terminate() == 0
    journal = Path(sandbox.state) / "journal.sqlite"
    if damage == "lost":
        journal.unlink()
    else:
        journal.write_bytes(b"no database" * 1000)

    sandbox.serve()
    second = train(run="damaged", emits=200, tags=2, seed=2)
    assert second.finished()["finish"]
    sandbox.drain()
    assert_exactly(
        read_scalars(sandbox.event_files("damaged")), first.emitted(300) + second.emitted(200)
    )

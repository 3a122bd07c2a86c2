"""Too little shared memory for the outbox, from the start or later: another place, never SIGBUS."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.fixtures import Train
from tests.support.mounts import fill, small_tmpfs, within_small_tmpfs
from tests.support.oracle import assert_balanced, assert_booked, assert_exactly, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.trainer import EMITTED
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

EMITS = 1000
OUTBOX_BYTES = 2 << 20
SHM = "/dev/shm"


def test_a_containers_64_mb(sandbox: Sandbox, train: Train) -> None:
    """The outbox is on disk then, and survives its trainer there as well."""
    sandbox.serve()
    prefix = within_small_tmpfs(**{SHM: "64m"})
    run = train(run="small", emits=EMITS, tags=4, limit=EMITS // 2, prefix=prefix, end="wait")
    run.await_begun(EMITS // 2)
    (outbox,) = sandbox.outboxes()
    assert outbox.parent == sandbox.state / "outboxes"
    assert outbox.stat().st_blocks * 512 >= outbox.stat().st_size >= 64 << 20, "it is reserved"
    run.record["limit"] = 0
    run.await_begun(EMITS * 3 // 4)
    run.kill()
    wait_until(lambda: not outbox.exists(), 30, "the outbox is not adopted")
    sandbox.drain()
    found = read_scalars(sandbox.event_files("small"))
    # The emit under way is there as a whole or not at all.
    assert_exactly(found, run.emitted(found.total() // 4))
    assert found.total() // 4 in (run.returned, run.begun)
    assert "private memory" not in run.said()


def test_no_room_anywhere(sandbox: Sandbox, train: Train) -> None:
    """Private memory, said once, with the places that were tried and why."""
    sandbox.serve()
    prefix = within_small_tmpfs(**{SHM: "1m", str(sandbox.state): "1m"})
    run = train(run="nowhere", emits=EMITS, tags=4, prefix=prefix)
    stats = run.finished()
    assert stats["finish"]
    assert_balanced(stats)
    assert run.said().count("keeps its outbox in private memory") == 1
    for place in (SHM, str(sandbox.state)):
        assert place in run.said()
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("nowhere")), run.emitted(EMITS))


def test_filled_by_somebody_else_later(sandbox: Sandbox, train: Train) -> None:
    """What is reserved stays ours: every page of the outbox can be stored to, again and again.

    The daemon lives in that directory, too: it is stopped so that the outbox overflows, goes on, is
    ended, and another one starts.
    """
    with small_tmpfs(sandbox.runtime, "6m") as runtime:
        daemon = sandbox.serve()
        run = train(
            run="filled",
            emits=EMITS,
            tags=4,
            text_every=5,  # 10 MB in all, five times what the outbox holds
            limit=10,
            end="wait",
            connect={"outbox_bytes": OUTBOX_BYTES, "autostart": False},
        )
        run.await_begun(10)
        (outbox,) = sandbox.outboxes()
        assert outbox.parent == Path(runtime) / "outboxes"
        print(f"{fill(runtime) >> 20} MiB were free beside an outbox of 2 MiB, and are not now")
        daemon.pause()
        run.record["limit"] = 0
        run.await_state(EMITTED)
        daemon.resume()
        before = run.stats_before_finish()
        assert_balanced(before)
        assert before["dropped"] > 0

        assert daemon.terminate() == 0
        assert run.process.poll() is None, run.said()
        (Path(runtime) / "filler").unlink()
        sandbox.serve()
        run.record["release"] = 1
        stats = run.finished()
        assert stats["finish"]
        assert_balanced(stats)
        emitted = EMITS + run.plan.texts(EMITS)
        assert_booked(sandbox.await_run("filled", state="finished"), emitted, stats["dropped"])
        sandbox.drain()
        assert_exactly(read_scalars(sandbox.event_files("filled")), run.emitted(EMITS))
        print(f"{stats['dropped']} of {emitted} records (texts) dropped and counted; no SIGBUS")


def test_started_where_nothing_is_free(sandbox: Sandbox, train: Train) -> None:
    """A full runtime directory: the daemon says nothing in its log, and works; or says why not."""
    with small_tmpfs(sandbox.runtime, "1m") as runtime:
        sandbox.serve().kill()  # its files have their pages now
        fill(Path(runtime))
        started = sandbox.cli("start")
        assert (started.returncode, "Traceback" in started.stderr) == (0, False), started.stderr
        assert os.stat(sandbox.paths.log).st_size == 0
        run = train(run="full", emits=EMITS, tags=4)
        assert run.finished()["finish"]
        stopped = sandbox.cli("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert_exactly(read_scalars(sandbox.event_files("full")), run.emitted(EMITS))

        fill(Path(runtime))  # what the lock's text took, it has given back
        started = sandbox.cli("start")
        assert started.returncode == 1
        assert "No space left on device" in started.stderr
        assert "Traceback" not in started.stderr

"""The state directory is full: clients hold, drop and count; all goes on when there is room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import pytest

from sidestep import client
from tests.support.fixtures import Connect
from tests.support.oracle import (
    assert_balanced,
    assert_booked,
    points,
    read_scalars,
    read_values,
)
from tests.support.sandbox import Sandbox
from tests.support.small_disk import SmallDisk, small_disk
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

OUTBOX = 4 << 20
TEXT = "x" * 20_000


@pytest.fixture
def disk(sandbox: Sandbox) -> Iterator[SmallDisk]:
    with small_disk(sandbox.state, "12m") as mounted:
        yield mounted


def emit(made: client.Client, steps: range) -> None:
    for step in steps:
        made.emit({"v": step / 7, "t": client.Text(TEXT)}, step=step)


def check(sandbox: Sandbox, run: str, stats: client.Stats, emits: int) -> None:
    """Everything is there once, or counted as dropped, in the files, in `status` and in `stats`."""
    assert_balanced(asdict(stats))
    assert (stats.emitted, stats.held) == (2 * emits, 0)
    assert_booked(sandbox.await_run(run, state="finished"), 2 * emits, stats.dropped)
    files = sandbox.event_files(run)
    found = read_scalars(files)
    missing = points(("v", step, step / 7) for step in range(emits)) - found
    assert found.total() + missing.total() == emits, "nothing twice"
    texts = [step for step, _, value in read_values(files) if value.tag.startswith("t")]
    assert len(texts) == len(set(texts))
    assert missing.total() + emits - len(texts) == stats.dropped


def storage_error(sandbox: Sandbox) -> str | None:
    found: str | None = sandbox.status()["daemon"]["storage_error"]
    return found


def test_filled_by_others(sandbox: Sandbox, disk: SmallDisk, connect: Connect) -> None:
    daemon = sandbox.serve()
    made = connect("full", outbox_bytes=OUTBOX)
    emit(made, range(50))
    assert made.flush(30)
    sandbox.await_sink("full", "ok")
    disk.fill()
    emits = 50
    while made.stats().dropped == 0:
        emit(made, range(emits, emits + 10))
        emits += 10
    assert not made.flush(0.2), "nothing is durable that is not in the journal"
    error = wait_until(lambda: storage_error(sandbox), 10, "no error in status")
    assert "full" in str(error)
    # It is no flicker: the disk is full, and stays so.
    assert storage_error(sandbox) == error
    assert "takes nothing" in sandbox.cli("status").stdout
    held = made.stats()
    assert_balanced(asdict(held))
    assert held.held > 0

    disk.free()
    assert made.flush(60)
    emit(made, range(emits, emits + 10))
    emits += 10
    assert made.finish(30)
    assert storage_error(sandbox) is None
    sandbox.drain()
    check(sandbox, "full", made.stats(), emits)
    assert daemon.process.poll() is None
    print(f"{made.stats()}, {held.held} held meanwhile")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_filled_by_the_journal_itself(sandbox: Sandbox, disk: SmallDisk, connect: Connect) -> None:
    """A sink that cannot write lets the journal fill its disk; it shrinks when the sink can."""
    sandbox.logs.write_text("not a directory")
    daemon = sandbox.serve()
    made = connect("grown", outbox_bytes=OUTBOX)
    emits = 0
    while storage_error(sandbox) is None:
        emit(made, range(emits, emits + 20))
        emits += 20
        made.flush(1)
    while made.stats().dropped == 0:
        emit(made, range(emits, emits + 10))
        emits += 10
    sandbox.await_sink("grown", "degraded")

    sandbox.logs.unlink()
    assert made.flush(60), sandbox.status()
    # It goes on for as long as one likes, history or not: with this more than the disk holds.
    for _ in range(10):
        emit(made, range(emits, emits + 50))
        emits += 50
        assert made.flush(60), sandbox.status()
    assert made.finish(60)
    sandbox.drain()
    check(sandbox, "grown", made.stats(), emits)
    assert daemon.process.poll() is None


def test_full_when_the_daemon_starts(sandbox: Sandbox, disk: SmallDisk, connect: Connect) -> None:
    """It says so, and the next one takes what the client has kept."""
    disk.fill()
    daemon = sandbox.serve_unready()
    assert daemon.process.wait(30) == 1
    assert "cannot start" in daemon.said()
    assert "No space left" in daemon.said()
    assert str(sandbox.state) in daemon.said()
    made = connect("late", outbox_bytes=OUTBOX)
    emit(made, range(50))
    assert not made.flush(0.2)
    disk.free()
    sandbox.serve()
    assert made.finish(60)
    sandbox.drain()
    check(sandbox, "late", made.stats(), 50)
    assert not [*sandbox.state.glob("*.damaged*")]

"""The daemon's account of each run, for `status`, `tail` and TensorBoard: dropped, held, behind."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest

from tests.chaos.runner.disks import Disk, can_mount
from tests.support.event_reader import scalars
from tests.support.fixtures import Connect, Train
from tests.support.oracle import assert_balanced, assert_booked
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

OFTEN = {"SIDESTEP_SAMPLE_INTERVAL_S": "0.2"}
SMALLEST = 256 << 10
LAG = "sidestep/lag_tensorboard"


def own_curves(sandbox: Sandbox, run: str) -> dict[str, list[float]]:
    """The daemon's own curves of a run, as TensorBoard reads them."""
    found: dict[str, list[float]] = defaultdict(list)
    for tag, _, value in scalars(*sandbox.event_files(run)):
        if tag.startswith("sidestep/"):
            found[tag].append(value)
    return found


def test_what_was_dropped_is_a_curve_in_tensorboard(sandbox: Sandbox, train: Train) -> None:
    """More is emitted than a small outbox holds, and nobody is there to take it."""
    emits = 12_000
    run = train(
        run="full",
        emits=emits,
        tags=5,
        limit=emits - 100,
        connect={"autostart": False, "outbox_bytes": SMALLEST},
    )
    run.await_begun(emits - 100)
    sandbox.serve(**OFTEN)
    sandbox.await_run("full", state="running")
    run.record["limit"] = 0
    stats = run.finished()
    assert stats["finish"]
    assert_balanced(stats)
    assert stats["dropped"] > emits // 4
    status = sandbox.await_run("full", state="finished")
    assert_booked(status, emits, stats["dropped"])
    assert status["records"]["emitted"] == emits
    sandbox.drain()
    assert own_curves(sandbox, "full")["sidestep/dropped"][-1] == stats["dropped"]
    shown = " ".join(sandbox.cli("status").stdout.split())
    assert f"emitted {emits:,} = durable {stats['acked']:,} + held 0 + dropped " in shown
    assert "books do not balance" not in shown


def test_a_sink_that_stands_still_is_seen_to_lag(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve(**OFTEN)
    made = connect("lags")
    made.emit({"a": 0.0}, step=0)
    assert made.flush(30)
    sandbox.await_sink("lags", "ok")
    (worker,) = sandbox.workers("tensorboard")
    worker.suspend()
    for step in range(1, 500):
        made.emit({"a": 1.0}, step=step)
    assert made.flush(30)
    # What the stopped sink cannot show, `tail` does.
    tail = sandbox.popen("tail", "lags", "--json", "--tags", "sidestep/lag*", "--history", "50")
    try:
        points = (json.loads(line) for line in tail.stdout or ())
        behind = next(p for p in points if p["tag"] == LAG and p["value"] >= 499)
        assert behind["run"] == "lags"
        next(p for p in points if p["tag"] == "sidestep/lag" and p["value"] >= 499)
        worker.resume()
        next(p for p in points if p["tag"] == LAG and p["value"] == 0)
    finally:
        tail.terminate()
        tail.communicate(timeout=30)
    assert made.finish(30)
    sandbox.drain()
    curve = own_curves(sandbox, "lags")[LAG]
    assert max(curve) >= 499
    assert min(curve[curve.index(max(curve)) :]) == 0


@pytest.mark.slow
def test_what_went_with_a_trainer_and_its_outbox_is_said(sandbox: Sandbox, train: Train) -> None:
    """The one loss that nobody can make good is not silent, and outlives the daemon."""
    disk = Disk(sandbox.state, 64, mount=can_mount())
    if not disk.mounted:
        pytest.skip("this machine does not let us mount a file system")
    try:
        daemon = sandbox.serve()
        run = train(run="gone", emits=3000, tags=2, limit=1000, end="wait")
        run.await_begun(1000)
        sandbox.await_run("gone", last_step=999)
        free = disk.fill()
        assert free is not None
        run.record["limit"] = 0
        run.await_begun(3000)
        # It has no credit, and says what it holds.
        status = wait_until(lambda: held(sandbox, "gone"), 30, "nothing is held")
        run.kill()
        (outbox,) = sandbox.outboxes()
        outbox.unlink()
        free()
        books = sandbox.await_run("gone", state="lost", timeout_s=40)["records"]
        assert books["emitted"] == status["emitted"] == 3000
        assert books["unaccounted"] == 3000 - books["durable"] >= 2000
        assert (books["held"], books["dropped"]) == (0, 0)
        daemon.kill()
        sandbox.serve()
        assert sandbox.await_run("gone", state="lost")["records"] == books
        assert "books do not balance" in " ".join(sandbox.cli("status").stdout.split())
    finally:
        disk.close()


def held(sandbox: Sandbox, run: str) -> dict[str, int] | None:
    """The run's books, once its client has said that it holds something."""
    status = sandbox.run_status(run)
    books: dict[str, int] = status["records"] if status else {}
    return books if books.get("held", 0) >= 2000 else None

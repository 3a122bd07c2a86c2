"""There is no daemon: training goes on, memory stays bounded, and the next one gets everything."""

from __future__ import annotations

from collections import Counter

import pytest

from sidestep import client
from tests.support.fixtures import Connect, Train
from tests.support.oracle import (
    assert_balanced,
    assert_booked,
    assert_exactly,
    points,
    read_scalars,
    read_values,
)
from tests.support.sandbox import Sandbox
from tests.support.trainer import EMITTED
from tests.support.training import Training

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

SMALLEST = 256 << 10
AWAY = {"autostart": False}
SMALL = {"autostart": False, "outbox_bytes": SMALLEST}


def test_trains_exits_in_time_and_the_next_daemon_delivers(sandbox: Sandbox, train: Train) -> None:
    run = train(run="alone", emits=2000, tags=5, finish_timeout_s=0.5, connect=AWAY)
    stats = run.finished()
    assert not stats["finish"]
    assert stats["finish_s"] < 2.0
    assert run.record["connect_ns"] < 1e9
    assert_balanced(stats)
    assert (stats["held"], stats["dropped"]) == (2000, 0)

    sandbox.serve()
    sandbox.drain()
    status = sandbox.run_status("alone")
    assert status
    assert_booked(status, 2000)
    assert_exactly(read_scalars(sandbox.event_files("alone")), run.emitted(2000))
    assert sandbox.outboxes() == []


def test_daemon_dies_for_good(sandbox: Sandbox, train: Train) -> None:
    """As if there had never been one, but for what it has: the next one takes the rest."""
    daemon = sandbox.serve()
    run = train(
        run="orphan", emits=2000, tags=5, interval_s=0.0005, finish_timeout_s=0.5, connect=AWAY
    )
    run.await_begun(700)
    daemon.kill()
    stats = run.finished()
    assert not stats["finish"]
    assert stats["finish_s"] < 2.0
    assert_balanced(stats)
    assert (stats["emitted"], stats["dropped"]) == (2000, 0)
    assert stats["held"] > 0
    print(f"{stats['acked']} acknowledged, {stats['held']} held at the end")

    sandbox.serve()
    sandbox.drain()
    assert_booked(sandbox.await_run("orphan", state="finished"), 2000)
    assert_exactly(read_scalars(sandbox.event_files("orphan")), run.emitted(2000))
    assert sandbox.outboxes() == []


@pytest.mark.slow
def test_user_is_told_once(sandbox: Sandbox, train: Train) -> None:
    run = train(run="told", emits=10, end="wait", connect=AWAY)
    run.await_state(EMITTED)
    told = "no daemon answers at"
    run._await(lambda: told in run.said(), "told")
    sandbox.serve()
    sandbox.await_run("told", state="running")
    assert run.said().count(told) == 1


def test_daemon_comes_late(sandbox: Sandbox, train: Train) -> None:
    run = train(run="late", emits=3000, tags=5, interval_s=0.0005, connect=AWAY)
    run.await_begun(1000)
    sandbox.serve()
    assert run.finished()["finish"]
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("late")), run.emitted(3000))


# --- more than the outbox holds -----------------------------------------------------------------


def written_emits(sandbox: Sandbox, run: Training) -> set[int]:
    """Which emits are in the event files; each is there whole, once, or not at all."""
    found = read_scalars(sandbox.event_files(run.plan.run))
    steps = {step for _, step, _ in found}
    rows = (row for row in run.plan.rows(run.plan.emits) if row[1] in steps)
    assert_exactly(found, points(rows))
    return steps


def test_overflow_is_counted_to_the_record(sandbox: Sandbox, train: Train) -> None:
    emits = 20_000
    run = train(run="full", emits=emits, tags=5, limit=emits - 10, connect=SMALL)
    run.await_begun(emits - 10)
    sandbox.serve()
    sandbox.await_run("full", state="running")
    run.record["limit"] = 0
    stats = run.finished()
    assert stats["finish"]
    assert_balanced(stats)
    assert stats["dropped"] > emits // 2

    sandbox.drain()
    written = written_emits(sandbox, run)
    print(f"{stats['dropped']} of {emits} dropped; written: {len(written)}")
    assert len(written) == emits - stats["dropped"] == stats["acked"]
    # The oldest went; of those after, at most what came while all that was left was under way.
    assert {*range(emits - 100, emits - 11)} <= written
    status = sandbox.await_run("full", state="finished")
    assert_booked(status, emits, stats["dropped"])
    assert status["records"]["durable"] == len(written)


def test_overflow_of_a_trainer_that_is_killed_then(sandbox: Sandbox, train: Train) -> None:
    emits = 20_000
    run = train(run="full", emits=emits, tags=5, end="wait", connect=SMALL)
    run.await_state(EMITTED)
    stats = run.stats_before_finish()
    assert_balanced(stats)
    run.kill()
    sandbox.serve()
    sandbox.drain()
    written = written_emits(sandbox, run)
    assert len(written) == emits - stats["dropped"] == stats["held"]
    status = sandbox.await_run("full", state="lost")
    assert_booked(status, emits, stats["dropped"])


def test_overflow_takes_large_values_first(sandbox: Sandbox, train: Train) -> None:
    emits = 600
    run = train(
        run="mixed", emits=emits, tags=3, text_every=20, text_bytes=60_000, connect=SMALL, limit=590
    )
    run.await_begun(590)
    sandbox.serve()
    sandbox.await_run("mixed", state="running")
    run.record["limit"] = 0
    stats = run.finished()
    assert stats["finish"]
    assert_balanced(stats)
    texts = run.plan.texts(emits)
    assert stats["emitted"] == emits + texts
    assert 0 < stats["dropped"] <= texts, "numbers went before texts"

    sandbox.drain()
    assert len(written_emits(sandbox, run)) == emits
    tags = Counter(value.tag for _, _, value in read_values(sandbox.event_files("mixed")))
    assert tags["note/text_summary"] == texts - stats["dropped"]
    assert_booked(sandbox.await_run("mixed", state="finished"), emits + texts, stats["dropped"])


def test_overflow_behind_a_stopped_daemon(sandbox: Sandbox, train: Train) -> None:
    """What is sent and not acknowledged is never evicted: whether it arrived is unknown."""
    emits = 20_000
    daemon = sandbox.serve()
    run = train(run="behind", emits=emits, tags=5, interval_s=0.0001, limit=500, connect=SMALL)
    run.await_begun(500)
    sandbox.await_run("behind", state="running")
    daemon.pause()
    run.record["limit"] = emits - 10
    run.await_begun(emits - 10)
    daemon.resume()
    run.record["limit"] = 0
    stats = run.finished()
    assert stats["finish"]
    assert_balanced(stats)
    assert stats["dropped"] > 0
    sandbox.drain()
    written = written_emits(sandbox, run)
    print(f"{stats['dropped']} of {emits} dropped; written: {len(written)}")
    assert len(written) == emits - stats["dropped"]
    assert written >= set(range(500))
    assert_booked(sandbox.await_run("behind", state="finished"), emits, stats["dropped"])


def test_overflow_while_the_daemon_comes_and_goes(sandbox: Sandbox, train: Train) -> None:
    emits = 30_000
    run = train(run="comes", emits=emits, tags=5, limit=4000, connect=SMALL)
    for limit in (12_000, 20_000, 29_990):
        daemon = sandbox.serve()
        run.await_begun(run.record["limit"])
        run.record["limit"] = limit
        run.await_begun(limit - 4000)
        daemon.kill()
        run.await_begun(limit)
    sandbox.serve()
    run.record["limit"] = 0
    stats = run.finished()
    assert stats["finish"]
    assert_balanced(stats)
    sandbox.drain()
    written = written_emits(sandbox, run)
    print(f"{stats['dropped']} of {emits} dropped; written: {len(written)}")
    assert len(written) == emits - stats["dropped"]
    assert_booked(sandbox.await_run("comes", state="finished"), emits, stats["dropped"])


def test_block_waits_instead_of_dropping(sandbox: Sandbox, train: Train) -> None:
    emits = 8000
    run = train(run="block", emits=emits, tags=5, connect={**SMALL, "on_full": "block"})
    run.await_begun(1000)
    assert run.begun < emits
    sandbox.serve()
    stats = run.finished()
    assert stats["finish"]
    assert stats["dropped"] == 0
    sandbox.drain()
    assert len(written_emits(sandbox, run)) == emits


def test_memory_of_a_client_without_daemon_is_bounded(sandbox: Sandbox, connect: Connect) -> None:
    made = connect("bounded", outbox_bytes=SMALLEST)
    for step in range(30_000):
        made.emit({"a": 1.0, "b": 2.0}, step=step)
        if step % 1000 == 0:
            made.emit({"h": client.Text("x" * 100_000)}, step=step)
    stats = made.stats()
    assert stats.held_bytes <= SMALLEST
    assert stats.emitted == stats.held + stats.dropped == 30_030
    (outbox,) = sandbox.outboxes()
    assert outbox.stat().st_size <= SMALLEST

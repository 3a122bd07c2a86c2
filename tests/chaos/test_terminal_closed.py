"""The terminal is closed on a trainer, a daemon, a `tail`: what was emitted is written anyway."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import pytest

from tests.support.fixtures import Train
from tests.support.journal_file import assert_sound
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import ROOT, SIDESTEP, Sandbox
from tests.support.terminal import Terminal
from tests.support.trainer import EMITTED, Plan, Record
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

EMITS = 3000


def trainer(sandbox: Sandbox, run: str) -> tuple[Plan, Record, list[str]]:
    """A trainer that emits and then waits: its plan, its record, and its command."""
    plan = Plan(str(sandbox.root / f"{run}.record"), run, EMITS, tags=4, end="wait")
    record = Record(plan.record, EMITS)
    command = [sys.executable, "-m", "tests.support.trainer", json.dumps(asdict(plan))]
    return plan, record, command


@pytest.mark.parametrize("how", ["run", "autostart"])
def test_on_a_trainer(sandbox: Sandbox, how: str) -> None:
    """It ends with its terminal; the daemon, which has none, writes what it had emitted."""
    plan, record, command = trainer(sandbox, "closed")
    beside = [*SIDESTEP, "run", "--"] if how == "run" else []
    with Terminal(sandbox, *beside, *command, PYTHONPATH=str(ROOT)) as terminal:
        wait_until(lambda: record["state"] >= EMITTED, 60, terminal.said)
        terminal.close_window()
        terminal.process.wait(60)
    # `run` stays until all is written; without it, `drain` is there for that.
    if how == "autostart":
        sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("closed")), points(plan.rows(EMITS)))
    assert {p.pid for p in sandbox.processes()} >= {sandbox.daemon_pid()}, "it lives on"
    assert_sound(sandbox)
    record.close()


def test_on_serve_and_on_tail(sandbox: Sandbox, train: Train) -> None:
    """A tail's end disturbs nobody; the daemon drains, though it can say nothing of it."""
    with (
        Terminal(sandbox, *SIDESTEP, "serve") as serving,
        Terminal(sandbox, *SIDESTEP, "tail", "closed") as table,
        Terminal(sandbox, *SIDESTEP, "tail", "closed", "--json") as lines,
    ):
        serving.await_words("sidestep is ready")
        run = train(
            run="closed",
            emits=EMITS,
            tags=4,
            interval_s=0.0005,
            end="wait",
            connect={"autostart": False},
        )
        table.await_words("last value")
        lines.await_words('"tag": "train/v3"')
        for listener in (table, lines):
            listener.close_window()
            listener.process.wait(30)
        run.await_state(EMITTED)
        wait_until(
            lambda: (
                (run_ := sandbox.run_status("closed")) is not None
                and run_["records"]["durable"] >= EMITS
            ),
            30,
            "not durable",
        )
        serving.close_window()
        assert serving.process.wait(60) == 0
    # Of the node's processes none is left but the trainer.
    wait_until(
        lambda: {p.pid for p in sandbox.processes()} <= {run.process.pid}, 5, sandbox.processes
    )
    assert_exactly(read_scalars(sandbox.event_files("closed")), run.emitted())
    assert_sound(sandbox)


def test_ctrl_c_twice_in_a_terminal(sandbox: Sandbox, train: Train) -> None:
    """Typed, not sent: the whole group gets it, and only the daemon itself obeys."""
    with Terminal(sandbox, *SIDESTEP, "serve", SIDESTEP_DRAIN_TIMEOUT_S="60") as serving:
        serving.await_words("sidestep is ready")
        run = train(
            run="typed",
            emits=EMITS,
            tags=4,
            end="wait",
            finish_timeout_s=0.2,
            connect={"autostart": False},
        )
        run.await_state(EMITTED)
        (worker,) = wait_until(lambda: sandbox.workers("tensorboard"), 30, serving.said)
        worker.suspend()
        serving.type(b"\x03")
        serving.await_words("stopping")
        assert serving.process.poll() is None
        serving.type(b"\x03")
        assert serving.process.wait(20) == 0
    assert_sound(sandbox)
    run.record["release"] = 1
    run.wait()
    sandbox.serve()
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("typed")), run.emitted(EMITS))

"""The wall clock jumps by an hour, back and forth: timers do not notice, order is by sequence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.support.clock_shift import ShiftedClock
from tests.support.fixtures import Train
from tests.support.journal_file import assert_sound
from tests.support.oracle import assert_balanced, assert_exactly, read_scalars, read_values
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

HOUR_S = 3600
EMITS = 1200
TAGS = 3
STAGES = (0, HOUR_S, -HOUR_S, 0)
"""How far the clock is from the right time, one stage after the other."""


@pytest.fixture
def clock(sandbox: Sandbox) -> ShiftedClock:
    made = ShiftedClock.build(sandbox.root)
    ask = "import time; print(time.time(), time.monotonic())"
    made.shift(HOUR_S)
    said = subprocess.run(
        [sys.executable, "-c", ask],
        env={**os.environ, **made.env()},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    # The fault is really there, and it is the right one.
    assert abs(float(said[0]) - time.time() - HOUR_S) < 60
    assert abs(float(said[1]) - time.monotonic()) < 60
    made.shift(0)
    return made


def await_durable(sandbox: Sandbox, run: str, records: int) -> None:
    """Wait until the journal has so many records of the trainer's, all but one at the most."""

    def durable() -> bool:
        status = sandbox.run_status(run)
        return status is not None and int(status["records"]["durable"]) >= records - 1

    wait_until(durable, 20, lambda: f"{records} durable: {sandbox.run_status(run)}")


def test_of_all_processes(sandbox: Sandbox, train: Train, clock: ShiftedClock) -> None:
    """Trainer, daemon, workers and `tail` live by a clock that jumps in the middle of a run."""
    env: dict[str, Any] = clock.env()
    daemon = sandbox.serve(SIDESTEP_SAMPLE_INTERVAL_S="0.2", **env)
    run = train(
        run="jumps",
        emits=EMITS,
        tags=TAGS,
        interval_s=0.001,
        limit=1,
        env=env,
        connect={"autostart": False},
    )
    run.await_begun(1)
    with sandbox.popen("tail", "jumps", "--json", "--history", "1000", **env) as tail:
        assert tail.stdout
        lines = [tail.stdout.readline()]  # it is there: what comes now it will show
        began = time.monotonic()
        for number, shift_s in enumerate(STAGES):
            clock.shift(shift_s)
            limit = EMITS * (number + 1) // len(STAGES)
            run.record["limit"] = limit
            run.await_begun(limit)
            # Nobody is given up, and nothing waits for an hour: each stage becomes durable.
            await_durable(sandbox, "jumps", limit)
            assert 0 <= sandbox.status()["daemon"]["uptime_s"] < 120
        assert sandbox.cli("drain", "--timeout", "30", **env).returncode == 0
        run.record["limit"] = 0
        stats = run.finished()
        took_s = time.monotonic() - began
        while len([line for line in lines if '"train/' in line]) < EMITS * TAGS:
            lines.append(tail.stdout.readline())
        tail.terminate()
    assert stats["finish"]
    assert_balanced(stats)
    assert (stats["acked"], stats["dropped"]) == (EMITS, 0)
    sandbox.await_run("jumps", state="finished")
    # Stopped with the clock an hour behind the one that it was started with.
    clock.shift(-HOUR_S)
    assert daemon.terminate() == 0
    assert_sound(sandbox)

    files = sandbox.event_files("jumps")
    assert_exactly(read_scalars(files), run.emitted(EMITS))
    values = [(step, at, v.tag) for step, at, v in read_values(files) if v.tag == "train/v0"]
    assert [step for step, _, _ in values] == list(range(EMITS)), "in the order of emission"
    # The times are those that the trainer's clock showed: nobody has corrected them.
    shifts = [round((at - time.time()) / HOUR_S) for _, at, _ in values]
    for number, shift_s in enumerate(STAGES):
        middle = EMITS * (2 * number + 1) // (2 * len(STAGES))
        assert shifts[middle] == shift_s // HOUR_S
    points = [json.loads(line) for line in lines]
    shown = [(p["tag"], p["step"], p["value"]) for p in points if p["tag"].startswith("train/")]
    assert shown == list(run.plan.rows(EMITS))
    system = [at for _, at, v in read_values(files) if v.tag == "system/cpu_percent"]
    assert len(system) > 3, "the samplers went on"
    print(f"{EMITS} emits over four jumps in {took_s:.1f} s; {len(system)} samples of the machine")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_between_two_daemons(sandbox: Sandbox, train: Train, clock: ShiftedClock) -> None:
    """Killed, and started again an hour earlier: it goes on in the same file where it stood."""
    env: dict[str, Any] = clock.env()
    clock.shift(HOUR_S)
    daemon = sandbox.serve(**env)
    run = train(run="back", emits=400, tags=TAGS, limit=200, env=env, connect={"autostart": False})
    run.await_begun(200)
    (first,) = wait_until(lambda: sandbox.event_files("back"), 30, "no event file")
    daemon.kill()
    clock.shift(-HOUR_S)
    began = time.monotonic()
    sandbox.serve(**env)
    run.record["limit"] = 0
    assert run.finished()["finish"]
    sandbox.drain()
    print(f"connected again and all written {time.monotonic() - began:.1f} s after the restart")
    assert sandbox.event_files("back") == [first]
    assert_exactly(read_scalars([first]), run.emitted(400))
    assert_sound(sandbox)

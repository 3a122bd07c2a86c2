"""torchrun restarts the trainer, or is ended itself: one run, every number once, no curve twice."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import elastic_ranks
from tests.support.curves import curve, restarts
from tests.support.elastic_trainer import value
from tests.support.oracle import assert_booked, assert_exactly, points, read_scalars, read_values
from tests.support.sandbox import ROOT, Sandbox
from tests.support.waiting import wait_until
from tests.support.wandb_file import read_history, wandb_files

pytest.importorskip("torch")
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

START_S = 120.0


class Job:
    """A real torchrun of one process on this node."""

    def __init__(self, sandbox: Sandbox, steps: int, *ends: str) -> None:
        self.checkpoint = sandbox.root / "checkpoint"
        self.log = sandbox.root / "torchrun.log"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1"),
            *("--standalone", "--max-restarts", str(len(ends)), "-m"),
            *("tests.support.elastic_trainer", str(self.checkpoint), str(steps), *ends),
        ]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=sandbox.env(), stdout=out, stderr=subprocess.STDOUT
            )

    @property
    def emitted(self) -> int:
        """How many emits of this attempt have returned, if it began at step 0."""
        path = self.checkpoint.with_suffix(".emitted")
        text = path.read_text() if path.exists() else ""
        return int(text or -1) + 1

    def await_emitted(self, emits: int) -> None:
        wait_until(
            lambda: self.emitted >= emits or self.process.poll() is not None,
            START_S,
            self.log.read_text,
        )
        assert self.process.poll() is None, self.log.read_text()


def run_folder(sandbox: Sandbox) -> Path:
    return sandbox.logs / "tensorboard" / "elastic"


def test_restarted_by_torchrun(sandbox: Sandbox) -> None:
    """It kills itself at step 137, crashes at step 220, and each time goes on from a checkpoint."""
    daemon = sandbox.serve()
    job = Job(sandbox, 300, "137:SIGKILL", "220:SIGSEGV")
    assert job.process.wait(START_S) == 0, job.log.read_text()
    attempts = [range(138), range(100, 221), range(200, 300)]
    status = sandbox.await_run("elastic", state="finished", clients=0)
    sandbox.drain()
    print(daemon.said())

    assert status["attempts"] == 3
    assert_booked(status, sum(len(steps) for steps in attempts))
    rows = [
        row
        for attempt, steps in enumerate(attempts)
        for step in steps
        for row in (("train/loss", step, value(attempt, step)), ("train/lr", step, 0.5))
    ]
    assert_exactly(read_scalars(sandbox.event_files("elastic")), points(rows))
    assert len(sandbox.event_files("elastic")) == 1
    assert restarts(sandbox.event_files("elastic")) == [100, 200]
    shown = [*range(100), *range(100, 200), *range(200, 300)]
    assert curve(run_folder(sandbox), "train/loss") == [
        (step, value(step // 100, step)) for step in shown
    ]
    assert sandbox.outboxes() == []


def test_ranks_restarted_by_torchrun(sandbox: Sandbox) -> None:
    """The last of three dies at step 12, all are started again and go on from step 8."""
    ranks, steps, checkpoint, fatal = 3, 16, 8, 12
    sandbox.serve(SIDESTEP_REDUCE_TIMEOUT_S="600")
    folder = sandbox.root / "notes"
    folder.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(ranks), "--max-restarts", "2"),
            *("-m", "tests.support.elastic_ranks", str(folder)),
            *(str(number) for number in (steps, checkpoint, fatal)),
        ],
        cwd=ROOT,
        env=sandbox.env(ELASTIC_WANDB='{"project": "sidestep-test", "mode": "offline"}'),
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    status = sandbox.await_run("elastic", state="finished", clients=0)
    sandbox.drain()

    def mean(attempt: int, step: int) -> float:
        speak = ranks - (attempt == 0 and step == fatal)
        return math.fsum(elastic_ranks.value(attempt, step, r) for r in range(speak)) / speak

    attempts = [range(fatal + 1), range(checkpoint, steps)]
    rows = [
        row
        for attempt, of in enumerate(attempts)
        for step in of
        for row in (("train/loss", step, mean(attempt, step)), ("train/lr", step, 0.5))
    ]
    marks = [(f"train/{tag}_ranks", fatal, ranks - 1.0) for tag in ("loss", "sample")]
    # Of both attempts everything is kept, each by itself.
    assert_exactly(read_scalars(sandbox.event_files("elastic")), points([*rows, *marks]))
    assert len(sandbox.event_files("elastic")) == 1
    # TensorBoard shows the second attempt from its first step on.
    assert restarts(sandbox.event_files("elastic")) == [checkpoint]
    assert curve(run_folder(sandbox), "train/loss") == [
        (step, pytest.approx(mean(step >= checkpoint, step), rel=1e-6)) for step in range(steps)
    ]
    (file,) = wandb_files(sandbox.logs)
    found = [(row["train/loss"]) for row in read_history(file) if "train/loss" in row]
    assert sorted(found) == sorted(value for tag, _, value in rows if tag == "train/loss")
    counts = [
        (step, item.histo.num)
        for step, _, item in read_values(sandbox.event_files("elastic"))
        if item.tag == "train/sample"
    ]
    assert sorted(counts) == sorted(
        (step, (20 + attempt) * (ranks - (attempt == 0 and step == fatal)))
        for attempt, of in enumerate(attempts)
        for step in of
    )
    assert status["attempts"] == 2
    assert_booked(status, sum(map(len, attempts)) * (2 * ranks + 1) - 2)
    assert status["reductions"] == {"awaited": 0, "partial": 2, "late": 0, "pushed_out": 0}
    assert "attempt 2" in sandbox.cli("status").stdout
    assert sandbox.outboxes() == []


@pytest.mark.slow
@pytest.mark.parametrize("end", ["slow", "deaf"])
def test_torchrun_is_ended(sandbox: Sandbox, end: str) -> None:
    """SIGTERM to torchrun is SIGTERM to the trainer, and SIGKILL 30 s later to one that is deaf."""
    sandbox.serve()
    job = Job(sandbox, 1_000_000, end)
    job.await_emitted(200)
    began = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    job.process.wait(START_S)
    print(f"torchrun ended after {time.monotonic() - began:.1f} s with {job.process.returncode}")
    assert end == "slow" or time.monotonic() - began > 20
    sandbox.await_run("elastic", state="lost", clients=0)
    sandbox.drain()
    found = read_scalars(sandbox.event_files("elastic"))
    # All that returned; perhaps one more, which returned and could not be noted.
    written = found.total() // 2
    assert written in (job.emitted, job.emitted + 1)
    assert_exactly(
        found,
        points(
            row
            for step in range(written)
            for row in (("train/loss", step, value(0, step)), ("train/lr", step, 0.5))
        ),
    )

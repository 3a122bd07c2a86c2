"""A sink's worker that dies whenever it starts, or hangs: the others do not notice, people do."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from psutil import Process

from sidestep.sidecar.archive.reader import find_run
from tests.support.fixtures import Connect, Train
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until
from tests.support.wandb_file import is_complete, read_history, wandb_files

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

EMITS = 1000

CRASHING = """
import os, signal, sys
line = " ".join(sys.orig_argv)
if "sidestep.sidecar.worker {sink}" in line and os.path.exists({flag!r}):
    with open({flag!r}, "a") as starts:
        starts.write("x")
    os.kill(os.getpid(), signal.SIGSEGV)
"""


def crashing(sandbox: Sandbox, sink: str) -> tuple[Path, str]:
    """A flag that makes each worker of a sink die at once, and the PYTHONPATH for the daemon."""
    folder, flag = sandbox.root / "crash", sandbox.root / "starts"
    folder.mkdir()
    flag.touch()
    (folder / "sitecustomize.py").write_text(CRASHING.format(sink=sink, flag=str(flag)))
    return flag, os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def sink_of(sandbox: Sandbox, run: str, name: str) -> dict[str, Any]:
    status = sandbox.run_status(run)
    assert status is not None
    return next(sink for sink in status["sinks"] if sink["name"] == name)


def test_worker_that_dies_at_every_start(sandbox: Sandbox, train: Train) -> None:
    flag, path = crashing(sandbox, "tensorboard")
    began = time.monotonic()
    daemon = sandbox.serve(PYTHONPATH=path)
    run = train(run="loop", emits=EMITS, tags=4, interval_s=0.0005)
    assert run.finished()["finish"]
    sandbox.await_sink("loop", "closed", name="archive")
    archive = find_run(sandbox.logs, "loop")
    assert archive is not None
    written = [(p.tag, p.step, p.value) for p in archive.points(["train/*"])]
    assert_exactly(points(written), run.emitted(EMITS))
    assert archive.damage == []

    pauses: list[float] = []

    def grown() -> bool:
        sink = sink_of(sandbox, "loop", "tensorboard")
        assert sink["state"] in ("degraded", "starting"), sink
        if sink["state"] == "degraded":
            assert sink["error"] == f"its worker ended with code -{signal.SIGSEGV.value}"
            assert sink["lag_records"] >= EMITS
        left = sink["retry_in_s"] or 0.0
        if left > max(pauses, default=0.4):
            pauses.append(left)
        return pauses != [] and pauses[-1] > 1.5

    wait_until(grown, 60, lambda: f"pauses {pauses}", 0.02)
    starts = len(flag.read_text())
    elapsed_s = time.monotonic() - began
    print(f"{starts} starts in {elapsed_s:.1f} s")
    # 0.5 s, 1 s, 2 s, ... lie between them.
    assert 2 <= starts <= 2 + math.log2(elapsed_s / 0.5 + 1)
    assert "tensorboard degraded" in sandbox.cli("status").stdout
    assert daemon.process.poll() is None

    flag.unlink()
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("loop")), run.emitted(EMITS))
    assert sink_of(sandbox, "loop", "tensorboard")["error"] is None


DEADLINE = {"SIDESTEP_WORKER_DEADLINE_S": "6", "WANDB_MODE": "offline"}


def test_worker_that_hangs_is_abandoned(sandbox: Sandbox, connect: Connect) -> None:
    pytest.importorskip("wandb")
    daemon = sandbox.serve(**DEADLINE)
    made = connect("hangs", wandb=True)
    made.emit({"a": 0.0}, step=0)
    worker, core = stopped_worker(sandbox)
    for step in range(1, EMITS):
        made.emit({"a": step / 3}, step=step)
    assert made.finish(30)
    sandbox.await_sink("hangs", "closed")
    expected = points(("a", step, step / 3) for step in range(EMITS))
    assert_exactly(read_scalars(sandbox.event_files("hangs")), expected)
    sink = sandbox.await_sink("hangs", "degraded", name="wandb")
    assert sink["error"] == "no answer for 6 s"
    assert "hangs: its worker is killed" in daemon.said()
    psutil.wait_procs([worker, core], timeout=5)
    assert not worker.is_running()
    assert not core.is_running(), "what its library has started is left"
    sandbox.drain()
    assert wandb_steps(sandbox) == list(range(EMITS))


@pytest.mark.slow
def test_worker_that_hangs_at_its_end_is_abandoned(sandbox: Sandbox, connect: Connect) -> None:
    """Nothing is left to write then: it is the complete file that somebody waits for."""
    pytest.importorskip("wandb")
    sandbox.serve(**DEADLINE)
    made = connect("hangs", wandb=True)
    for step in range(10):
        made.emit({"a": step / 3}, step=step)
    worker, core = stopped_worker(sandbox)
    assert made.finish(30)
    sandbox.await_run("hangs", state="finished")
    sandbox.drain(120)
    psutil.wait_procs([worker, core], timeout=5)
    assert not worker.is_running()
    assert not core.is_running()
    assert wandb_steps(sandbox) == list(range(10))
    assert is_complete(wandb_files(sandbox.logs)[-1])
    assert sink_of(sandbox, "hangs", "wandb")["error"] is None


def stopped_worker(sandbox: Sandbox) -> tuple[Process, Process]:
    """W&B's worker and its wandb-core, stopped when they have written everything."""

    def settled() -> bool:
        sink = sink_of(sandbox, "hangs", "wandb")
        return (sink["state"], sink["lag_records"]) == ("ok", 0)

    wait_until(lambda: sandbox.run_status("hangs") and settled(), 60, "W&B does not work")
    (worker,) = sandbox.workers("wandb")
    (core,) = [p for p in worker.children() if p.name() == "wandb-core"]
    core.suspend()
    worker.suspend()
    return worker, core


def wandb_steps(sandbox: Sandbox) -> list[int]:
    rows = [row for path in wandb_files(sandbox.logs) for row in read_history(path)]
    return [row["global_step"] for row in rows if "a" in row]

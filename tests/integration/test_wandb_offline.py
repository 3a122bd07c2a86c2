"""A W&B run in mode offline holds every step, to float64."""

from __future__ import annotations

import math
import os
import time

import pytest

from tests.support.fixtures import Connect
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.wandb_file import is_complete, read_history, read_run, wandb_files

pytestmark = pytest.mark.timeout(180)

pytest.importorskip("wandb")


def test_every_step_is_in_the_wandb_file(sandbox: Sandbox, connect: Connect) -> None:
    daemon = sandbox.serve()
    made = connect(
        "offline", config={"lr": 1e-3, "layers": [1, 2]}, wandb={"project": "sidestep-test"}
    )
    emitted = [{"train/loss": 1 / (k + 1), "train/lr": k * 1e-8} for k in range(2000)]
    for step, values in enumerate(emitted):
        made.emit(values, step=step)
        if step % 500 == 0:
            made.emit({"val/accuracy": step / 7}, step=step)
    made.emit({"train/loss": math.nan, "train/lr": math.inf}, step=2000)
    made.emit({"train/loss": 0.5}, step=10)  # back again: W&B must not drop it
    assert made.finish(30)
    sandbox.drain(120)

    (file,) = wandb_files(sandbox.logs)
    rows = read_history(file)
    losses = [(row["global_step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses[:2000] == [(step, values["train/loss"]) for step, values in enumerate(emitted)]
    assert losses[2000][0] == 2000
    assert math.isnan(float(losses[2000][1]))
    assert losses[2001] == (10, 0.5)
    rates = [row["train/lr"] for row in rows if "train/lr" in row]
    assert rates[:2000] == [values["train/lr"] for values in emitted]
    accuracies = {row["global_step"]: row["val/accuracy"] for row in rows if "val/accuracy" in row}
    assert accuracies == {step: step / 7 for step in (0, 500, 1000, 1500)}
    run = read_run(file)
    assert (run.project, run.display_name) == ("sidestep-test", "offline")
    assert daemon.said().count("offline") >= 1, "one line says that there is no API key"
    assert daemon.terminate() == 0
    assert is_complete(file)
    assert_exactly(
        +read_scalars(sandbox.event_files("offline")),
        points(
            [
                *((tag, k, v) for k, values in enumerate(emitted) for tag, v in values.items()),
                *(("val/accuracy", k, k / 7) for k in (0, 500, 1000, 1500)),
                ("train/loss", 2000, math.nan),
                ("train/lr", 2000, math.inf),
                ("train/loss", 10, 0.5),
            ]
        ),
    )


@pytest.fixture
def path_without_wandb(sandbox: Sandbox) -> str:
    """A PYTHONPATH that makes Python believe that wandb is not installed."""
    folder = sandbox.root / "blocked"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['wandb'] = None\n")
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def test_drain_says_that_a_sink_cannot_work(
    sandbox: Sandbox, connect: Connect, path_without_wandb: str
) -> None:
    """At once: to wait for its timeout, or for ever without one, would change nothing."""
    sandbox.serve(PYTHONPATH=path_without_wandb)
    made = connect("without", wandb=True)
    made.emit({"a": 1.0}, step=0)
    assert made.finish(30)
    sandbox.await_sink("without", "failed", name="wandb")
    began = time.monotonic()
    drained = sandbox.cli("drain", "--timeout", "15")
    assert drained.returncode == 1
    assert "wandb" in drained.stderr
    assert time.monotonic() - began < 10


def test_without_wandb_installed(
    sandbox: Sandbox, connect: Connect, path_without_wandb: str
) -> None:
    """The sink says what to install; TensorBoard, `finish` and `stop` do not notice."""
    daemon = sandbox.serve(PYTHONPATH=path_without_wandb)
    made = connect("without", wandb={"mode": "offline"})
    for step in range(100):
        made.emit({"a": step / 3}, step=step)
    sink = sandbox.await_sink("without", "failed", name="wandb")
    assert "pip install 'sidestep[wandb]'" in sink["error"]
    assert made.finish(30)
    sandbox.await_sink("without", "closed")
    expected = points(("a", step, step / 3) for step in range(100))
    assert_exactly(read_scalars(sandbox.event_files("without")), expected)

    shown = sandbox.cli("status")
    assert "pip install 'sidestep[wandb]'" in shown.stdout
    assert daemon.terminate(30) == 0
    # With wandb back, the next daemon writes what the journal kept.
    sandbox.serve()
    sandbox.drain(120)
    (file,) = wandb_files(sandbox.logs)
    assert [row["a"] for row in read_history(file) if "a" in row] == [k / 3 for k in range(100)]

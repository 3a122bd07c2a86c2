"""The ported example, as it stands, into a real daemon: what TensorBoard and W&B then have."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator

import pytest
import torch

from sidestep import client
from tests.support.fixtures import Connect
from tests.support.oracle import read_scalars, read_values
from tests.support.sandbox import ROOT, Sandbox
from tests.support.wandb_file import read_history, read_run, wandb_files

pytestmark = pytest.mark.timeout(120)

EXAMPLE = str(ROOT / "client/examples/metrics_logger_port.py")
STEPS = [0, 10, 20, 30, 40, 50]
EPOCHS = [30, 60]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The example sets it for its process, which here is everybody's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_ported_example(
    sandbox: Sandbox, connect: Connect, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.serve()
    monkeypatch.setattr(sys, "argv", ["x", "--name", "port", "--log-dir", str(sandbox.logs)])
    example = runpy.run_path(EXAMPLE)
    example["CONFIG"]["logging"]["wandb"] |= {"enabled": True, "mode": "offline"}
    example["main"]()
    assert client.stats().rejected == client.stats().dropped == 0
    sandbox.drain(120)

    files = sandbox.event_files("port")
    found = read_scalars(files)
    assert max(found.values()) == 1
    steps: dict[str, list[int]] = {}
    for tag, step, _ in found:
        steps.setdefault(tag, []).append(step)
    often = {
        *("train/loss", "train/lr", "gradients/norm"),
        *(f"train/hierarchy/level_{k}_{what}" for k in (0, 1) for what in ("loss", "percentage")),
        *(f"train/{which}_{what}" for which in ("context", "target") for what in ("std", "norm")),
    }
    at_epochs = {
        *("train_epoch/loss", "train_epoch/loss_level_0", "train_epoch/loss_level_1"),
        *("weights/norm", "predictions/mask_ratio"),
        *(f"predictions/level_{k}_similarity" for k in (0, 1)),
    }
    for tag in often:
        assert sorted(steps[tag]) == STEPS, tag
    for tag in at_epochs:
        assert sorted(steps[tag]) == EPOCHS, tag

    kinds: dict[str, list[str]] = {}
    for _, _, value in read_values(files):
        kinds.setdefault(value.WhichOneof("value"), []).append(value.tag)
    parameters = [name for name, _ in example["Model"](32, 2).named_parameters()]
    mine = [tag for tag in kinds["histo"] if tag.startswith(("weights/", "gradients/"))]
    assert sorted(mine) == sorted(
        [f"weights/{name}" for name in parameters] * len(EPOCHS)
        + [f"gradients/{name}" for name in parameters] * len(STEPS)
    )
    pictures = ["original_images", *(f"masked_{i}" for i in range(4))]
    shown = [tag for tag in kinds["image"] if tag.startswith("training/")]
    assert sorted(shown) == sorted([f"training/images/{name}" for name in pictures] * 2)
    projector = list((sandbox.logs / "tensorboard/port").rglob("projector_config.pbtxt"))
    assert "embeddings" in projector[0].read_text()

    (file,) = wandb_files(sandbox.logs)
    run = read_run(file)
    assert (run.project, run.display_name, list(run.tags)) == ("h-jepa", "port", ["example"])
    rows = read_history(file)
    losses = {row["global_step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert sorted(losses) == STEPS
    assert losses.keys() == {s for t, s, _ in found if t == "train/loss"}

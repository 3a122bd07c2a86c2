"""Gradients and weights of a model in training, through a real daemon, against numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sidestep import client
from sidestep.client.parameters import MAX_PARAMETERS
from tests.support.fixtures import Connect
from tests.support.oracle import OWN, read_values
from tests.support.sandbox import Sandbox
from tests.support.wandb_file import read_history, wandb_files

pytestmark = pytest.mark.timeout(120)

STEPS = 3
LONG = "x" * 1500


def check_histogram(shown: Any, values: np.ndarray) -> None:
    """That a histogram of TensorBoard's holds just these values, in buckets no coarser than its."""
    exact = values.astype(np.float64).ravel()
    finite = exact[np.isfinite(exact)]
    assert shown.num == sum(shown.bucket) == len(finite)
    limits = np.array(shown.bucket_limit)
    assert (np.diff(limits) > 0).all()
    # Closed towards zero: above it that is numpy's own way.
    for number, count in zip(range(1, len(limits)), shown.bucket[1:], strict=True):
        low, high = limits[number - 1], limits[number]
        if low > 0:
            assert count == ((finite >= low) & (finite < high)).sum()
    assert shown.min == pytest.approx(finite.min(), rel=0.13)
    assert shown.max == pytest.approx(finite.max(), rel=0.13)
    assert shown.sum == pytest.approx(finite.sum(), abs=0.07 * np.abs(finite).sum())
    if len(finite) == len(exact):
        assert shown.sum_squares == pytest.approx(np.square(finite).sum(), rel=1e-5)


def test_a_model_in_training(sandbox: Sandbox, connect: Connect) -> None:
    daemon = sandbox.serve()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 4))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0)
    made = connect("net", wandb={"project": "p", "mode": "offline"})
    gradients: dict[tuple[str, int], np.ndarray] = {}
    weights: dict[tuple[str, int], np.ndarray] = {}
    moved: dict[tuple[str, int], float] = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = net(torch.randn(16, 20)).square().mean()
        loss.backward()
        if step == 2:
            next(iter(net.parameters())).grad[0, 0] = math.nan
        made.emit({"gradients": client.Gradients(net), "loss": loss}, step=step)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        gradients |= {(n, step): p.grad.numpy().copy() for n, p in net.named_parameters()}
        if step == 2:
            optimizer.zero_grad()
        optimizer.step()
        made.emit({"weights": client.Weights(net, optimizer=optimizer)}, step=step)
        weights |= {(n, step): p.detach().numpy().copy() for n, p in net.named_parameters()}
        moved |= {(n, step): (p - before[n]).norm().item() for n, p in net.named_parameters()}
    # Beside it all that there is room for, and a name that there is none for.
    pairs = [(f"layer.{i}.weight", torch.ones(1)) for i in range(MAX_PARAMETERS - 1)]
    made.emit({"many": client.Weights([*pairs, (LONG, torch.ones(1))])}, step=0)
    assert made.stats().rejected == 0
    assert made.flush(30)
    sandbox.drain(90)
    assert daemon.said().count("nothing can be derived") == 1
    assert made.finish(30)

    scalars: dict[str, dict[int, float]] = {}
    histograms: dict[tuple[str, int], Any] = {}
    for step, _, value in read_values(sandbox.event_files("net")):
        if value.HasField("simple_value"):
            assert step not in scalars.setdefault(value.tag, {}) or value.tag.startswith(OWN)
            scalars[value.tag][step] = value.simple_value
        elif value.HasField("histo"):
            assert (value.tag, step) not in histograms, "once"
            histograms[value.tag, step] = value.histo
    for folder, expected in (("gradients", gradients), ("weights", weights)):
        for (name, step), values in expected.items():
            check_histogram(histograms.pop((f"{folder}/{name}", step)), values)
            norm = scalars[f"{folder}/{name}_norm"][step]
            assert norm == pytest.approx(np.linalg.norm(values), rel=1e-5, nan_ok=True)
        for step in range(STEPS):
            every = np.concatenate([v.ravel() for (_, s), v in expected.items() if s == step])
            norm = scalars[f"{folder}/norm"][step]
            assert norm == pytest.approx(np.linalg.norm(every), rel=1e-5, nan_ok=True)
            assert scalars[f"{folder}/nonfinite"][step] == (~np.isfinite(every)).sum()
    for (name, step), change in moved.items():
        if step == 2:
            continue  # nothing had a gradient: the moments tell of the step before
        ratio = scalars[f"weights/{name}_update_ratio"][step]
        assert ratio == pytest.approx(change / np.linalg.norm(weights[name, step]), rel=1e-3)
    assert scalars["many/norm"][0] == pytest.approx(math.sqrt(MAX_PARAMETERS))
    assert len(histograms) == MAX_PARAMETERS - 1
    assert not any(tag.startswith(f"many/{LONG}") for tag, _ in histograms)

    (file,) = wandb_files(sandbox.logs)
    rows = [row for row in read_history(file) if "gradients/0.weight" in row]
    assert [row["global_step"] for row in rows] == list(range(STEPS))
    assert sum(rows[0]["gradients/0.weight"]["values"]) == 600

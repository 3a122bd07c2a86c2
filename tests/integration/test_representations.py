"""Representations through a real daemon: emitted tensors in, every figure of them in the files."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from PIL import Image

from sidestep import client
from tests.support.fixtures import Connect
from tests.support.oracle import read_scalars, read_values
from tests.support.representations import reference
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CASES = {
    "flat": normal(300, 24),
    "wide": normal(20, 64) + 3,
    "tokens": normal(12, 9, 20) + normal(12, 1, 20, seed=1) + normal(1, 9, 20, seed=2),
    "half": (normal(128, 16) + 1).to(torch.bfloat16),
    "double": normal(128, 16).double() + 1e6,
    "two": normal(2, 3),
    "line": normal(64, 1),
    "power": normal(400, 32) * torch.arange(1, 33) ** -0.75,
}
EXTRAS = ("uniformity", "alignment", "vicreg_variance", "vicreg_covariance", "koleo", "lidar")
DRAWN = ("pr_images",)
"""Stands on tokens that the client draws: not those of the reference."""


@pytest.fixture
def emitted(sandbox: Sandbox, connect: Connect) -> dict[str, dict[int, dict[str, float]]]:
    """Every scalar in the event files, by the tag of the representation, step and suffix."""
    daemon = sandbox.serve()
    made = connect("rep", wandb=None)
    for step in range(2):
        made.emit({tag: client.Representation(x) for tag, x in CASES.items()}, step=step)
    y = normal(64, 16)
    x = y + 0.5 * normal(64, 16, seed=1)
    pair = client.Representation(x, paired=y, loss=0.5, extras=EXTRAS, views=torch.stack((x, y)))
    made.emit({"paired": pair}, step=0)
    broken = normal(40, 8)
    broken[3, 2], broken[9, 0] = math.nan, math.inf
    made.emit({"broken": client.Representation(broken)}, step=0)
    made.emit({"dead": client.Representation(torch.full((16, 4, 8), 0.7))}, step=0)
    made.emit({"zero": client.Representation(torch.zeros(16, 8))}, step=0)
    assert made.flush(30)
    assert made.stats().rejected == 0
    sandbox.drain()
    assert "nothing can be derived" not in daemon.said()
    assert made.finish(30)
    found: dict[str, dict[int, dict[str, float]]] = {}
    for step, _, value in read_values(sandbox.event_files("rep")):
        tag, _, suffix = value.tag.partition("_")
        place = found.setdefault(tag, {}).setdefault(step, {})
        if value.HasField("simple_value"):
            assert suffix not in place  # once
            place[suffix] = value.simple_value
        elif value.HasField("image") or value.HasField("histo"):
            assert suffix not in place
            place[suffix] = value
    return found


def test_every_figure_of_every_shape(emitted: dict[str, Any]) -> None:
    for tag, x in CASES.items():
        rows = x.double().numpy()
        for step, due in ((0, True), (1, False)):
            found, expected = emitted[tag][step], reference(rows, due=due)
            drawn = {name: found.pop(name, None) for name in ("spectrum", "eigenvalues")}
            assert found.keys() == expected.keys(), (tag, step)
            for name in expected.keys() - DRAWN:
                # A spread of 1 beside a mean of a million: float32 kept little of the mean's own.
                assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), (tag, name)
            if rows.ndim == 2 and "pr_images" in expected:
                assert found["pr_images"] == pytest.approx(expected["pr_images"], rel=1e-4)
            if due:
                assert_drawn(drawn["spectrum"], drawn["eigenvalues"], rows)
            else:
                assert drawn == {"spectrum": None, "eigenvalues": None}
    assert_of_pairs(emitted["paired"][0])
    assert_of_collapse(emitted)


def assert_drawn(picture: Any, histogram: Any, rows: Any) -> None:
    n, d = rows.reshape(-1, rows.shape[-1]).shape
    image = Image.open(io.BytesIO(picture.image.encoded_image_string))
    assert image.size == (640, 420)
    assert histogram.histo.num <= min(n - 1, d)
    assert sum(histogram.histo.bucket) == histogram.histo.num


def assert_of_pairs(found: dict[str, Any]) -> None:
    y = normal(64, 16)
    x = y + 0.5 * normal(64, 16, seed=1)
    expected = reference(x.numpy(), paired=y.numpy())
    for name in ("target_cosine", "target_error", "target_variance"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    assert found["loss"] == 0.5
    assert {*EXTRAS} <= found.keys()
    assert 1 < found["lidar"] < 16


def assert_of_collapse(emitted: dict[str, Any]) -> None:
    broken = emitted["broken"][0]
    assert (broken["nonfinite"], broken["n_rows"], broken["n_images"]) == (2, 38, 40)
    assert 0.8 < broken["std"] < 1.2
    for tag in ("dead", "zero"):
        found = emitted[tag][0]
        assert (found["variance_share"], found["std"], found["dead_fraction"]) == (0, 0, 1)
        undefined = {"pr", "pr_images", "alpha", "share_image", "spectrum", "condition"}
        assert not undefined & found.keys()
    assert emitted["dead"][0]["cosine"] == pytest.approx(1)
    assert not {"cosine", "rank", "norm_cv"} & emitted["zero"][0].keys()


def test_a_deriver_that_stands_still_delays_no_sink_and_one_that_dies_says_nothing_twice(
    sandbox: Sandbox, connect: Connect
) -> None:
    sandbox.serve()
    made = connect("still", wandb=None)
    x = normal(128, 96)

    def derivers() -> list[Any]:
        return [p for p in sandbox.processes() if "sidestep.sidecar.derive.worker" in p.cmdline()]

    def steps(tag: str) -> list[int]:
        found = read_scalars(sandbox.event_files("still")).elements()
        return sorted(step for name, step, _ in found if name == tag)

    def written() -> bool:
        sinks = (sandbox.run_status("still") or {})["sinks"]
        return all(sink["lag_records"] == 0 for sink in sinks)

    def emit(step: int) -> None:
        made.emit({"a": 1.0, "x": client.Representation(x, spectrum_every=1)}, step=step)

    emit(0)
    (deriver,) = wait_until(derivers, 30, "no deriver came")
    deriver.suspend()
    for step in range(1, 31):
        emit(step)
    assert made.flush(30)
    wait_until(lambda: written() and steps("a")[-1:] == [30], 30, "the sink waits for the deriver")
    assert steps("x_rank") in ([], [0])
    deriver.kill()
    sandbox.drain()
    for tag in ("a", "x_std", "x_rank", "x_pr_images"):
        assert steps(tag) == list(range(31)), tag
    assert made.finish(30)

"""The caller's time of what is more than a number: a picture, and a histogram of a large tensor."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from tests.bench.workloads import Metrics, Trial, describe

IMAGE_SHAPE: Final = (3, 224, 224)
HISTOGRAM_SIZE: Final = 590_000
"""The elements of one weight matrix of a ViT-B's MLP, on the CPU."""

BURST: Final = 20
"""Calls in a burst: what they hand over must fit sidestep's outbox (64 MiB)."""

PACE_S: Final = 0.1
"""Seldom, as such values are logged; what works behind the caller's back gets the time."""


def payloads(trial: Trial) -> Metrics:
    """Pictures of uint8 and of float32 in [0, 1], and histograms: a burst, then `size` paced."""
    import torch

    trial.warm()
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(IMAGE_SHAPE, generator=generator)
    weights = torch.randn(HISTOGRAM_SIZE, generator=generator)
    found: Metrics = {}
    for row, emit, value in (
        ("image8", trial.system.emit_image, (picture * 255).to(torch.uint8)),
        ("image", trial.system.emit_image, picture),
        ("histogram", trial.system.emit_histogram, weights),
    ):
        burst = _timed(emit, value, trial, BURST, 0.0)
        trial.system.settle()
        paced = _timed(emit, value, trial, trial.size, PACE_S)
        trial.system.settle()
        found |= describe(row, burst) | describe(f"{row}.paced", paced)
    return {key: value for key, value in found.items() if not key.endswith(("p99", "max"))}


def _timed(
    emit: Callable[[Any, int], object], value: Any, trial: Trial, calls: int, pace_s: float
) -> list[int]:
    durations: list[int] = []
    for step in range(trial.steps, trial.steps + calls):
        time.sleep(pace_s)
        start = time.perf_counter_ns()
        emit(value, step)
        durations.append(time.perf_counter_ns() - start)
    return durations

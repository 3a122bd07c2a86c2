"""The caller's time of what is more than a number: a picture, and a histogram of a large tensor."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from tests.bench.workloads import Metrics, Trial, describe

IMAGE_SHAPE: Final = (3, 224, 224)
HISTOGRAM_SIZE: Final = 590_000
"""The elements of one weight matrix of a ViT-B's MLP, on the CPU."""

PACE_S: Final = 0.1
"""Seldom, as such values are logged; what works behind the caller's back gets the time."""


def payloads(trial: Trial) -> Metrics:
    """`size` pictures of float32 in [0, 1], then as many histograms, one every 100 ms."""
    import torch

    trial.warm()
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(IMAGE_SHAPE, generator=generator)
    weights = torch.randn(HISTOGRAM_SIZE, generator=generator)
    found: Metrics = {}
    for row, emit, value in (
        ("image", trial.system.emit_image, picture),
        ("histogram", trial.system.emit_histogram, weights),
    ):
        durations = _timed(lambda step, emit=emit, value=value: emit(value, step), trial)
        found |= describe(row, durations)
    return {key: value for key, value in found.items() if "p99" not in key}


def _timed(emit: Callable[[int], object], trial: Trial) -> list[int]:
    durations: list[int] = []
    for step in range(trial.steps, trial.steps + trial.size):
        time.sleep(PACE_S)
        start = time.perf_counter_ns()
        emit(step)
        durations.append(time.perf_counter_ns() - start)
    return durations

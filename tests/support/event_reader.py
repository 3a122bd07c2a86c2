"""Event files as TensorBoard's own readers see them, and blocks of numbers to write into them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.backend.event_processing.event_file_loader import (
    EventFileLoader,
    LegacyEventFileLoader,
)

from sidestep.proto import Value
from sidestep.sidecar.rows.points import Points, ScalarBlock


def block(
    tags: Sequence[str],
    steps: Sequence[int],
    values: Sequence[Sequence[float]] | npt.NDArray[np.float64],
    times_ns: Sequence[int] | None = None,
) -> ScalarBlock:
    """A block of numbers; its times are a second apart when none are given."""
    times = [(1_700_000_000 + row) * 10**9 for row in range(len(steps))]
    return ScalarBlock(
        tuple(tags),
        np.array(steps, np.int64),
        np.array(times if times_ns is None else times_ns, np.int64),
        np.array(values, np.float64).reshape(len(steps), len(tags)),
    )


def text(tag: str, step: int, words: str) -> Value:
    """A text value."""
    return Value("text", tag, step, (1_700_000_000 + step) * 10**9, {"text": words})


def events(path: Path) -> list[Any]:
    """Every Event in the file, as it was written."""
    return list(LegacyEventFileLoader(str(path)).Load())


def scalars(*paths: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) of every scalar in the files, in order, as TensorBoard reads them."""
    return [
        (value.tag, event.step, value.tensor.float_val[0])
        for path in paths
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "scalars"
    ]


def scalars_of(points: Iterable[Points]) -> list[tuple[str, int, float]]:
    """(tag, step, value) of every scalar in `points`, in float32."""
    with np.errstate(all="ignore"):
        return [
            (tag, int(step), float(value))
            for point in points
            if isinstance(point, ScalarBlock)
            for step, row in zip(point.steps, point.values.astype(np.float32), strict=True)
            for tag, value in zip(point.tags, row, strict=True)
        ]

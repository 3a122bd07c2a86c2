"""Histograms as TensorBoard shows them: what `torch.utils.tensorboard` would have written."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sidestep.proto import Value

from ..rendering.arrays import numpy_of
from ..rendering.buckets import (
    Floats,
    Moments,
    counted,
    counts_of,
    edges_of,
    moments_of,
    subsampled,
    support,
)


def histogram(value: Value, event: Any) -> None:
    """The distribution of the finite elements."""
    if len(value.arrays) != 1 + (value.info.get("bins") == "edges"):
        raise ValueError(f"a histogram has one array and its edges, not {len(value.arrays)} arrays")
    data = numpy_of(value.arrays[0]).reshape(-1)
    shown = event.summary.value.add(tag=value.tag).histo
    shown.SetInParent()  # there is a histogram, even if it stays empty
    with np.errstate(all="ignore"):  # sums of huge values become infinite
        moments = moments_of(data)
        if moments.num:
            edges = edges_of(value, data, moments)
            counts = counts_of(data, edges)
            most = value.info.get("max_bins")
            if isinstance(most, int) and most > 0:
                plain = value.info.get("bins") is None
                counts, edges = subsampled(counts, edges, most, exponential=plain)
            _fill(shown, moments, *_with_empty_first(*support(counts, edges)))


def histogram_counts(value: Value, event: Any) -> None:
    """A distribution that was counted already."""
    shown = event.summary.value.add(tag=value.tag).histo
    with np.errstate(all="ignore"):
        moments, counts, limits = counted(value)
        if len(limits) > len(counts):
            counts, limits = _with_empty_first(*support(counts, limits))
        _fill(shown, moments, counts, limits)


def _with_empty_first(counts: npt.NDArray[Any], edges: Floats) -> tuple[npt.NDArray[Any], Floats]:
    """Counts and upper limits: an empty one in front says where the first full bucket begins."""
    return np.concatenate([[0], counts]), edges


def _fill(shown: Any, moments: Moments, counts: npt.NDArray[Any], limits: Floats) -> None:
    shown.min, shown.max, shown.num = moments.low, moments.high, moments.num
    shown.sum, shown.sum_squares = moments.total, moments.squares
    shown.bucket_limit.extend(limits.tolist())
    shown.bucket.extend(counts.tolist())

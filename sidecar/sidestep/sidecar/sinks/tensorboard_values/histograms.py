"""Histograms as TensorBoard shows them: what `torch.utils.tensorboard` would have written."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sidestep.proto import Value

from ..rendering.arrays import only_array

_HISTOGRAM_CHUNK: Final = 65_536
"""Values that are sorted at a time: they stay in the cache, and a copy of all is never made."""

_MAX_BINS: Final = 4096
"""Of a histogram with bins of equal width; more than a screen has columns."""


def histogram(value: Value, event: Any) -> None:
    """The distribution of the finite elements."""
    data = only_array(value).reshape(-1)
    bins = value.info.get("bins")
    shown = event.summary.value.add(tag=value.tag).histo
    shown.SetInParent()  # there is a histogram, even if it stays empty
    with np.errstate(all="ignore"):  # sums of huge values become infinite
        count, low, high, total, squares = _moments(data)
        if count:
            edges = _exponential_edges() if bins is None else _equal_edges(bins, low, high)
            counts, limits = _support(_counts(data, edges), edges)
            shown.min, shown.max, shown.num = low, high, count
            shown.sum, shown.sum_squares = total, squares
            shown.bucket_limit.extend(limits.tolist())
            shown.bucket.extend(counts.tolist())


@cache
def _exponential_edges() -> npt.NDArray[np.float64]:
    """TensorFlow's buckets: each a tenth wider than the one before, from 1e-12 to 1e20 and beyond.

    torch leaves the outermost two away, and with them all that is over 1e20.
    """
    positive = [1e-12]
    while (edge := positive[-1] * 1.1) < 1e20:
        positive.append(edge)
    half = np.array([*positive, np.finfo(np.float64).max])
    return np.concatenate([-half[::-1], [0.0], half])


def _equal_edges(bins: object, low: float, high: float) -> npt.NDArray[np.float64]:
    if not isinstance(bins, int) or not 0 < bins <= _MAX_BINS:
        raise ValueError(f"bins must be an integer from 1 to {_MAX_BINS}, not {bins!r:.40}")
    try:
        edges = np.histogram_bin_edges(np.array([low, high]), bins)
    except ValueError:  # the range has fewer numbers than that, or is itself no finite number
        return _exponential_edges()
    return edges if np.isfinite(edges).all() else _exponential_edges()


def _finite_chunks(data: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield the finite values, some of them at a time."""
    for start in range(0, len(data), _HISTOGRAM_CHUNK):
        chunk = data[start : start + _HISTOGRAM_CHUNK]
        finite = np.isfinite(chunk)
        yield chunk if finite.all() else chunk[finite]


def _moments(data: npt.NDArray[Any]) -> tuple[int, float, float, float, float]:
    """Count, minimum, maximum, sum and sum of squares of the finite values."""
    count, low, high, total, squares = 0, np.inf, -np.inf, 0.0, 0.0
    for chunk in _finite_chunks(data):
        if chunk.size:
            doubles = chunk.astype(np.float64)
            count += chunk.size
            low, high = min(low, doubles.min()), max(high, doubles.max())
            total += doubles.sum()
            squares += np.square(doubles).sum()  # not BLAS: its threads add up in any order
    return count, float(low), float(high), float(total), float(squares)


def _counts(data: npt.NDArray[Any], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """How many finite values lie in each bucket, the upper limit of the last one included."""
    counts = np.zeros(len(edges) - 1, np.int64)
    for chunk in _finite_chunks(data):
        # As np.histogram does it, but sorted as what they are: float32 takes half the time.
        ordered = np.sort(chunk).astype(np.float64)
        below = ordered.searchsorted(edges, side="left")
        below[-1] = ordered.searchsorted(edges[-1], side="right")
        counts += np.diff(below)
    return counts


def _support(
    counts: npt.NDArray[np.int64], edges: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Counts and upper limits from the bucket before the first full one to the last full one.

    The empty bucket in front tells TensorBoard where the first full one begins.
    """
    full = np.flatnonzero(counts)
    first, last = int(full[0]), int(full[-1])
    return np.concatenate([[0], counts[first : last + 1]]), edges[first : last + 2]

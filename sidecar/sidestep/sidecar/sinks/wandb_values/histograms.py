"""Histograms as W&B shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sidestep.proto import Value

from ..rendering.arrays import only_array

_DEFAULT_BINS: Final = 64
"""Of `wandb.Histogram`."""

_MAX_BINS: Final = 512
"""More buckets W&B does not take: wider ones say nothing false."""

_HISTOGRAM_CHUNK: Final = 65_536
"""Values that are looked at together: they stay in the cache, and a copy of all is never made."""


def histogram(value: Value) -> object:
    """The distribution of the finite elements, in buckets of equal width."""
    import wandb

    data = only_array(value).reshape(-1)
    bins = value.info.get("bins")
    if bins is None:
        bins = _DEFAULT_BINS
    if not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be a positive integer, not {bins!r:.40}")
    return wandb.Histogram(np_histogram=_buckets(data, min(bins, _MAX_BINS)))


def _buckets(
    data: npt.NDArray[Any], bins: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Counts and edges of `bins` buckets of equal width over the finite values of `data`."""
    low, high = np.inf, -np.inf
    for chunk in _finite_chunks(data):
        low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
    if low > high:
        raise ValueError("a histogram needs at least one finite value")
    with np.errstate(all="ignore"):  # huge values have infinite distances
        edges = _edges(low, high, bins)
        counts = np.zeros(len(edges) - 1, np.int64)
        for chunk in _finite_chunks(data):
            counts += np.histogram(chunk, bins=edges)[0]
    return counts, edges


def _edges(low: float, high: float, bins: int) -> npt.NDArray[np.float64]:
    try:
        edges = np.histogram_bin_edges(np.array([low, high]), bins)
    except ValueError:  # numpy refuses a range that is infinitely wide or too narrow to divide
        edges = np.array([low, high])
    if np.isfinite(edges).all() and (edges[1:] > edges[:-1]).all():
        return edges
    # One bucket for all of them says nothing false either.
    largest = np.finfo(np.float64).max
    around = np.array([np.nextafter(low, -np.inf), np.nextafter(high, np.inf)])
    return around.clip(-largest, largest)


def _finite_chunks(data: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the finite values in float64, some of them at a time."""
    for start in range(0, len(data), _HISTOGRAM_CHUNK):
        chunk = data[start : start + _HISTOGRAM_CHUNK].astype(np.float64)
        finite = chunk[np.isfinite(chunk)]
        if finite.size:
            yield finite

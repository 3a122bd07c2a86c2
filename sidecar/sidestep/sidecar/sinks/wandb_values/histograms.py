"""Histograms as W&B shows them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sidestep.proto import Value

from ..rendering.arrays import numpy_of
from ..rendering.buckets import (
    Floats,
    counted,
    counts_of,
    edges_of,
    finite_chunks,
    merged,
    moments_of,
    support,
)

_DEFAULT_BINS: Final = 64
"""Of `wandb.Histogram`."""

_MAX_BINS: Final = 512
"""More buckets W&B does not take: wider ones say nothing false."""


def histogram(value: Value) -> object:
    """The distribution of the finite elements, by default in buckets of equal width."""
    if len(value.arrays) != 1 + (value.info.get("bins") == "edges"):
        raise ValueError(f"a histogram has one array and its edges, not {len(value.arrays)} arrays")
    data = numpy_of(value.arrays[0]).reshape(-1)
    bins = value.info.get("bins")
    if not isinstance(bins, str):
        bins = _DEFAULT_BINS if bins is None else bins
        if not isinstance(bins, int) or bins < 1:
            raise ValueError(f"bins must be a positive integer, not {bins!r:.40}")
        return _shown(*_buckets(data, min(bins, _MAX_BINS)))
    with np.errstate(all="ignore"):
        moments = moments_of(data)
        if not moments.num:
            raise ValueError("a histogram needs at least one finite value")
        edges = edges_of(value, data, moments)
        return _shown(counts_of(data, edges), edges)


def histogram_counts(value: Value) -> object:
    """A distribution that was counted already."""
    with np.errstate(all="ignore"):
        moments, counts, limits = counted(value)
    if len(limits) == len(counts):  # the first bucket begins at the smallest value
        limits = np.append(min(moments.low, limits[0]), limits)
    counts, edges = support(counts, limits)
    if not len(counts):
        raise ValueError("a histogram needs at least one value")
    # TensorBoard's outermost limits are the largest numbers there are.
    return _shown(counts, edges.clip(min(moments.low, edges[1]), max(moments.high, edges[-2])))


def _shown(counts: npt.NDArray[Any], edges: Floats) -> object:
    import wandb

    if len(counts) > _MAX_BINS:
        counts, edges = support(counts, edges) if counts.any() else (counts[:1], edges[:2])
    counts, edges = merged(counts, edges, -(-len(counts) // _MAX_BINS))
    return wandb.Histogram(np_histogram=(counts, edges))


def _buckets(data: npt.NDArray[Any], bins: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Counts and edges of `bins` buckets of equal width over the finite values of `data`."""
    low, high = np.inf, -np.inf
    for chunk in finite_chunks(data):
        low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
    if low > high:
        raise ValueError("a histogram needs at least one finite value")
    with np.errstate(all="ignore"):  # huge values have infinite distances
        edges = _edges(low, high, bins)
        return counts_of(data, edges), edges


def _edges(low: float, high: float, bins: int) -> Floats:
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

"""Elements to buckets: the moments of an array, edges by any rule, how many lie between them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sidestep.proto import Value

from .arrays import numpy_of

Floats = npt.NDArray[np.float64]

MAX_BINS: Final = 4096
"""Of a histogram with bins of equal width; more than a screen has columns."""

_CHUNK: Final = 65_536
"""Elements that are sorted at a time: they stay in the cache, and a copy of all is never made."""

_RULES: Final = ("auto", "fd", "doane", "scott", "stone", "rice", "sturges", "sqrt")
_RULED: Final = 4 << 20
"""Elements that a rule looks at, evenly spread if there are more: it needs a copy of them."""

_RULED_BY_STONE: Final = 100_000
"""For this one makes a histogram for each number of bins up to the root of that many."""

_MAX_RULED_BINS: Final = 100_000
"""What Freedman and Diaconis's rule may ask for: with few outliers it has no bound of its own."""

_LARGEST: Final = float(np.finfo(np.float64).max)


@dataclass(frozen=True, slots=True)
class Moments:
    """Of the finite elements: how many, the smallest, the largest, their sum, that of squares."""

    num: float
    low: float
    high: float
    total: float
    squares: float


def finite_chunks(data: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield the finite elements of a flat array, some of them at a time."""
    for start in range(0, len(data), _CHUNK):
        chunk = data[start : start + _CHUNK]
        finite = np.isfinite(chunk)
        found = chunk if finite.all() else chunk[finite]
        if found.size:
            yield found


def moments_of(data: npt.NDArray[Any]) -> Moments:
    """The moments of a flat array; without finite elements, those of an empty one."""
    count, low, high, total, squares = 0, np.inf, -np.inf, 0.0, 0.0
    for chunk in finite_chunks(data):
        doubles = chunk.astype(np.float64)
        count += chunk.size
        low, high = min(low, doubles.min()), max(high, doubles.max())
        total += doubles.sum()
        squares += np.square(doubles).sum()  # not BLAS: its threads add up in any order
    return Moments(count, float(low), float(high), float(total), float(squares))


def counts_of(data: npt.NDArray[Any], edges: Floats) -> npt.NDArray[np.int64]:
    """How many finite elements lie in each bucket, the upper limit of the last one included."""
    counts = np.zeros(len(edges) - 1, np.int64)
    for chunk in finite_chunks(data):
        # As np.histogram does it, but sorted as what they are: float32 takes half the time.
        ordered = np.sort(chunk).astype(np.float64)
        below = ordered.searchsorted(edges, side="left")
        below[-1] = ordered.searchsorted(edges[-1], side="right")
        counts += np.diff(below)
    return counts


def edges_of(value: Value, data: npt.NDArray[Any], moments: Moments) -> Floats:
    """The edges that a histogram asks for.

    Raises:
        ValueError: it asks for what there is not.
    """
    bins = value.info.get("bins")
    if bins is None:
        return exponential_edges()
    if bins == "edges":
        return given_edges(numpy_of(value.arrays[1]).reshape(-1))
    rule: Any = bins
    if isinstance(bins, str) and bins in _RULES:
        data = _finite(data, _RULED_BY_STONE if bins == "stone" else _RULED)
        rule = _bounded(bins, data, moments)
    elif not isinstance(bins, int) or not 0 < bins <= MAX_BINS:
        raise ValueError(
            f"bins must be an integer from 1 to {MAX_BINS}, or a rule's name, not {bins!r:.40}"
        )
    else:
        data = np.array([moments.low, moments.high])
    try:
        with warnings.catch_warnings():  # of a rule that has found no best number of bins
            warnings.simplefilter("ignore", RuntimeWarning)
            edges = np.histogram_bin_edges(data, rule, (moments.low, moments.high))
    except ValueError:  # the range has fewer numbers than that, or is itself no finite number
        return exponential_edges()
    return edges if np.isfinite(edges).all() else exponential_edges()


def given_edges(edges: npt.NDArray[Any]) -> Floats:
    """Edges that somebody gave, as finite numbers.

    Raises:
        ValueError: they decrease, or one is no number.
    """
    edges = edges.astype(np.float64)
    if not len(edges) or np.isnan(edges).any() or (edges[1:] < edges[:-1]).any():
        raise ValueError("the edges of a histogram are numbers that do not decrease")
    return edges.clip(-_LARGEST, _LARGEST)


@cache
def exponential_edges() -> Floats:
    """TensorFlow's buckets: each a tenth wider than the one before, from 1e-12 to 1e20 and beyond.

    torch leaves the outermost two away, and with them all that is over 1e20.
    """
    positive = [1e-12]
    while (edge := positive[-1] * 1.1) < 1e20:
        positive.append(edge)
    half = np.array([*positive, _LARGEST])
    return np.concatenate([-half[::-1], [0.0], half])


def merged(counts: npt.NDArray[Any], edges: Floats, factor: int) -> tuple[npt.NDArray[Any], Floats]:
    """The buckets, `factor` neighbours made one; the last one may have fewer."""
    if factor <= 1:
        return counts, edges
    starts = np.arange(0, len(counts), factor)
    return np.add.reduceat(counts, starts), np.append(edges[:-1:factor], edges[-1])


def subsampled(
    counts: npt.NDArray[Any], edges: Floats, most: int, *, exponential: bool
) -> tuple[npt.NDArray[Any], Floats]:
    """About `most` buckets: as torch reckons it, up to twice as many."""
    if not exponential:
        return merged(counts, edges, len(counts) // most)
    # torch has neither of the outermost two: they stay apart, so that the others are the same.
    inner, between = merged(counts[1:-1], edges[1:-1], (len(counts) - 2) // most)
    return (
        np.concatenate([counts[:1], inner, counts[-1:]]),
        np.concatenate([edges[:1], between, edges[-1:]]),
    )


def support(counts: npt.NDArray[Any], edges: Floats) -> tuple[npt.NDArray[Any], Floats]:
    """The buckets from the first full one to the last, with one more edge than counts."""
    full = np.flatnonzero(counts)
    if not len(full):
        return counts[:0], edges[-1:]
    first, last = int(full[0]), int(full[-1])
    return counts[first : last + 1], edges[first : last + 2]


def counted(value: Value) -> tuple[Moments, npt.NDArray[Any], Floats]:
    """The moments, counts and limits of a value of kind ``histogram_counts``, as it gives them.

    There is a limit for each count, or one more. A moment that is not given is estimated.

    Raises:
        ValueError: they do not fit each other.
    """
    if len(value.arrays) != 2:
        raise ValueError(f"counts come with limits: two arrays, not {len(value.arrays)}")
    limits = given_edges(numpy_of(value.arrays[0]).reshape(-1))
    counts = numpy_of(value.arrays[1]).reshape(-1).astype(np.float64)
    if not len(counts) or len(limits) - len(counts) not in (0, 1):
        raise ValueError(f"{len(counts)} counts do not go with {len(limits)} limits")
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise ValueError("counts are finite numbers that are not negative")
    edges = limits if len(limits) > len(counts) else np.append(limits[0], limits)
    full, around = support(counts, edges)
    middles = around[:-1] / 2 + around[1:] / 2
    estimated = {
        "num": counts.sum(),
        "min": around[0],
        "max": around[-1],
        "sum": (full * middles).sum(),
        "sum_squares": (full * middles**2).sum(),
    }
    given = {name: value.info.get(name, estimate) for name, estimate in estimated.items()}
    if not all(isinstance(number, (int, float)) for number in given.values()):
        raise ValueError("the moments of a histogram are numbers")
    num, low, high, total, squares = (float(number) for number in given.values())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return Moments(num, low, high, total, squares), counts, limits


def _finite(data: npt.NDArray[Any], most: int) -> Floats:
    """At most so many of the finite elements, evenly spread."""
    spread = data[:: -(-len(data) // most)].astype(np.float64)
    return spread[np.isfinite(spread)]


def _bounded(rule: str, data: Floats, moments: Moments) -> str | int:
    """`rule`, or a number of bins where it would ask for more than memory has."""
    if rule not in ("fd", "auto") or not len(data):
        return rule
    lower, upper = np.percentile(data, [25, 75])
    width = 2 * (upper - lower) / len(data) ** (1 / 3)
    if not 0 < width < (moments.high - moments.low) / _MAX_RULED_BINS:
        return rule
    # What numpy itself does about it for "auto", since its version 2.
    return _MAX_RULED_BINS if rule == "fd" else int(np.ceil(2 * np.sqrt(len(data))))

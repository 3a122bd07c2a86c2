"""The edges of histograms whose buckets are a float's upper bits, along the number line.

The client counts by sign, exponent and three bits of mantissa (see its `float_bits`): 2,040 finite
buckets a sign, and the zeros. Here they lie in the order of their values, and become as few as a
picture needs.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

BUCKETS: Final = 4097
FINITE_KEYS: Final = 2040
NEGATIVE: Final = 2048
ZEROS: Final = 4096

_KEYS_AN_OCTAVE: Final = 8
_FINE_OCTAVES: Final = 12
"""Below the largest magnitude, buckets are kept as they are for so long; then one an octave."""

Counts = npt.NDArray[np.int64]
Edges = npt.NDArray[np.float64]


@cache
def magnitudes() -> Edges:
    """Lower edges of the positive keys, (2041,); the last one is the largest float32."""
    keys = np.arange(FINITE_KEYS, dtype=np.uint32) << np.uint32(20)
    edges = keys.view(np.float32).astype(np.float64)
    return np.append(edges, float(np.finfo(np.float32).max))


def nonfinite(counts: Counts) -> int:
    """Elements that are infinite or NaN, of a row of counts."""
    positive = counts[FINITE_KEYS:NEGATIVE].sum()
    return int(positive + counts[NEGATIVE + FINITE_KEYS : ZEROS].sum())


def along_the_line(counts: Counts) -> tuple[Edges, Counts]:
    """The finite elements in buckets of rising value.

    Args:
        counts: (4097,), by keys; at least one finite element.

    Returns:
        Edges (b + 1,), strictly rising, and counts (b,), none of them outside of what is there. The
        zeros have a bucket of their own, no wider than the smallest float64s.
    """
    positive, negative = counts[:FINITE_KEYS], counts[NEGATIVE : NEGATIVE + FINITE_KEYS]
    top = max((int(np.flatnonzero(c)[-1]) for c in (positive, negative) if c.any()), default=0)
    starts = _kept(top)
    edges = magnitudes()[np.append(starts, top + 1)]
    edges[0] = np.nextafter(0.0, 1.0)  # what lies below is zero
    right, left = (np.add.reduceat(c[: top + 1], starts) for c in (positive, negative))
    all_edges = np.concatenate([-edges[::-1], edges])
    all_counts = np.concatenate([left[::-1], counts[ZEROS:], right])
    full = all_counts > 0
    # An edge between two empty buckets says nothing, nor does one outside of the full ones.
    kept = np.append(full, False) | np.append(False, full)
    return all_edges[kept], all_counts[np.flatnonzero(kept)[:-1]]


def _kept(top: int) -> npt.NDArray[np.intp]:
    """First keys of the buckets up to `top`: an octave each, and fine ones at the upper end."""
    fine_from = max(0, top // _KEYS_AN_OCTAVE - _FINE_OCTAVES) * _KEYS_AN_OCTAVE
    coarse = np.arange(0, fine_from, _KEYS_AN_OCTAVE)
    return np.concatenate([coarse, np.arange(fine_from, top + 1)])

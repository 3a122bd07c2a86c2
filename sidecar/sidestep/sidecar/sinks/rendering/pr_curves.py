"""Precision and recall at many thresholds: the same numbers whatever shows them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sidestep.proto import Value

from .arrays import numpy_of

ROWS: Final = ("tp", "fp", "tn", "fn", "precision", "recall")

MAX_THRESHOLDS: Final = 127
"""TensorBoard's own: more are not drawn."""

_MAX_COUNTS: Final = 8192
_MINIMUM_COUNT: Final = 1e-7
"""TensorBoard's own: no precision is divided by less."""


def curve_of(value: Value) -> tuple[int, npt.NDArray[np.float64]]:
    """How many thresholds a curve has by its own account, and its `ROWS`, shape (6, n).

    Raises:
        ValueError: the value is no curve.
    """
    told = value.info.get("num_thresholds")
    if not isinstance(told, int) or not 0 < told <= MAX_THRESHOLDS:
        raise ValueError(f"a curve has 1 to {MAX_THRESHOLDS} thresholds, not {told!r:.40}")
    arrays = [numpy_of(array) for array in value.arrays]
    if value.kind == "pr_curve_counts":
        if len(arrays) != len(ROWS) or any(array.ndim != 1 for array in arrays):
            raise ValueError(f"a curve is {len(ROWS)} arrays of one dimension")
        if not 0 < arrays[0].size <= _MAX_COUNTS:
            raise ValueError(f"a curve has 1 to {_MAX_COUNTS} counts, not {arrays[0].size}")
        with np.errstate(all="ignore"):
            return told, np.stack([array.astype(np.float64) for array in arrays])
    if len(arrays) not in (2, 3) or told < 2:
        raise ValueError("a curve is made of labels, predictions and weights")
    weights: Any = arrays[2] if len(arrays) == 3 else value.info.get("weight", 1.0)
    return told, _computed(arrays[0], arrays[1], weights, told)


def _computed(
    labels: npt.NDArray[Any], predictions: npt.NDArray[Any], weights: Any, thresholds: int
) -> npt.NDArray[np.float64]:
    """The curve as TensorBoard's own summary and torch compute it, in the same order."""
    with np.errstate(all="ignore"):
        buckets = np.floor(predictions * (thresholds - 1))
        # What has no bucket, NaN first, would become any integer.
        valid = (buckets >= 0) & (buckets <= thresholds - 1)
        truth = labels.astype(np.float64)
        weighted = np.broadcast_to(np.asarray(weights, np.float64), truth.shape)
        places = buckets[valid].astype(np.int32)
        bins, extent = thresholds, (0, thresholds - 1)
        positive = (truth * weighted)[valid]
        negative = ((1.0 - truth) * weighted)[valid]
        tp_buckets, _ = np.histogram(places, bins=bins, range=extent, weights=positive)
        fp_buckets, _ = np.histogram(places, bins=bins, range=extent, weights=negative)
        tp = np.cumsum(tp_buckets[::-1])[::-1]
        fp = np.cumsum(fp_buckets[::-1])[::-1]
        tn, fn = fp[0] - fp, tp[0] - tp
        precision = tp / np.maximum(_MINIMUM_COUNT, tp + fp)
        recall = tp / np.maximum(_MINIMUM_COUNT, tp + fn)
    return np.stack((tp, fp, tn, fn, precision, recall))

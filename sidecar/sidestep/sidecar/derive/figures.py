"""The statistics that every observation of a representation has, from its moments, in float64.

Notation: X is n×D, μ its mean, C its unbiased centred covariance, ẑ a row over its L2 norm; rows
with a non-finite element take no part. A figure that is undefined is absent, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from .additive import Floats, Moments, Scatter, Spread
from .spectrum import entropy_of, participation_ratio_of

_DEAD: Final = 0.01
"""Of the median standard deviation: what spreads less is dead."""

_LIDAR_DELTA: Final = 1e-4


def figures(moments: Moments) -> dict[str, float]:
    """All figures that need no spectrum, by the suffix that follows ``T_``.

    ``n_rows``, ``n_images``, ``n_dims``: rows that are finite, the images that they are of, D.
    ``n_image_tokens``: what `pr_images` stands on. ``nonfinite``: elements that are NaN or
    infinite. ``std``: the mean over dimensions of the unbiased std; N(0, s²) gives s. ``norm``:
    the mean L2 norm of the rows; ``norm_cv``: the unbiased std of the norms over that. ``loss``
    and the optional statistics: as they came. The others: the functions below.
    """
    with np.errstate(all="ignore"):  # huge values overflow; what comes of them is left out
        found = dict(_all(moments))
    return {name: float(x) for name, x in found.items() if math.isfinite(x)}


def _all(moments: Moments) -> Iterator[tuple[str, float]]:
    yield "n_rows", moments.rows.n
    yield "n_images", moments.n_images
    yield "n_image_tokens", moments.images.n
    yield "n_dims", moments.d
    yield "nonfinite", moments.nonfinite
    if moments.norms.n:
        yield "norm", float(moments.norms.mean)
    yield from _spread(moments)
    yield from _directions(moments)
    yield "pr_images", pr_images(moments)
    yield from shares(moments)
    yield from target(moments)
    yield "lidar", lidar(moments.scatter)
    for name, average in moments.averages.items():
        yield name, average.value


def _spread(moments: Moments) -> Iterator[tuple[str, float]]:
    if moments.rows.n < 2:
        return
    deviations = np.sqrt(_variance(moments.rows))
    yield "std", float(deviations.mean())
    yield "variance_share", variance_share(moments)
    yield "dead_fraction", dead_fraction(moments)
    norms = moments.norms
    if norms.mean > 0:
        yield "norm_cv", float(np.sqrt(_variance(norms)) / norms.mean)


def _directions(moments: Moments) -> Iterator[tuple[str, float]]:
    if moments.unit.n < 2:
        return
    yield "cosine", cosine(moments)
    yield "std_normalized", std_normalized(moments)


def _variance(spread: Spread) -> Floats:
    """Unbiased: over n − 1."""
    return np.asarray(spread.m2 / (spread.n - 1))


def variance_share(moments: Moments) -> float:
    """V = tr C / (tr C + ‖μ‖²): 0 of identical rows, near 1 of a mean of zero.

    Blind to scale, and not fooled by a LayerNorm, which keeps the norms when all rows have become
    one. Rows that are all zero are identical rows: 0.
    """
    trace = float(_variance(moments.rows).sum())
    if trace == 0:
        return 0.0
    return trace / (trace + float(moments.rows.mean @ moments.rows.mean))


def dead_fraction(moments: Moments) -> float:
    """The share of dimensions whose std is under 0.01 of the median std, or is zero."""
    deviations = np.sqrt(_variance(moments.rows))
    if not np.isfinite(deviations).all():
        return math.nan
    dead = (deviations < _DEAD * np.median(deviations)) | (deviations == 0)
    return float(dead.mean())


def cosine(moments: Moments) -> float:
    """The mean cosine of two different rows, (‖Σẑ‖² − n) / (n(n−1)): 1 of identical rows.

    Of isotropic rows 0. Rows of norm zero have no direction and are left out.
    """
    n = moments.unit.n
    total = moments.unit.mean * n
    return (float(total @ total) - n) / (n * (n - 1))


def std_normalized(moments: Moments) -> float:
    """√D × the mean per-dimension std of ẑ: 1 of isotropic rows, 0 of identical ones.

    SimSiam (Chen, He 2021, section 4.1) plots the std against 1/√D; lightly's
    ``std_of_l2_normalized`` is the same without the √D. Unbiased, over n − 1.
    """
    return math.sqrt(moments.d) * float(np.sqrt(_variance(moments.unit)).mean())


def pr_images(moments: Moments) -> float:
    """The debiased participation ratio of one token an image: what alarms stand on.

    Rows are not samples: tokens of one image resemble each other. So each image gives one token,
    drawn anew at each step; of (B, D) it is the row. See `spectrum.participation_ratio`.
    """
    images = moments.images
    if not images.trace.weight:
        return math.nan
    found = participation_ratio_of(images.trace.value, images.square.value)
    return math.nan if found is None else found


def shares(moments: Moments) -> Iterator[tuple[str, float]]:
    """What of the variance goes with the image, with the token position, and with neither.

    Sums of squares of the two-way layout (B, N, D) over their total; only for B ≥ 2 and N ≥ 2. All
    patches of an image equal: image 1. Position codes alone: position 1. All independent: residual
    near 1; image 1/N and position 1/B are then what chance gives.
    """
    two_way = moments.two_way
    if two_way is None or two_way.images < 2 or not two_way.total > 0:
        return
    image, position = two_way.by_image / two_way.total, two_way.by_position / two_way.total
    yield "share_image", min(image, 1.0)
    yield "share_position", min(position, 1.0)
    yield "share_residual", max(0.0, 1 - image - position)


def target(moments: Moments) -> Iterator[tuple[str, float]]:
    """Of a representation with a pair y: how near it is, and whether y is still alive.

    ``target_cosine``: mean cos(x, y). ``target_variance``: tr C_y. ``target_error``: mean
    ‖x − y‖² / tr C_y, in which D cancels: 1 is what the mean of y would do, 0 is perfect.
    """
    pair = moments.target
    if pair is None or pair.n < 1:
        return
    yield "target_cosine", pair.cosines / pair.n
    if pair.n > 1:
        variance = pair.m2 / (pair.n - 1)
        yield "target_variance", variance
        if variance > 0:
            yield "target_error", pair.squares / pair.n / variance


def lidar(scatter: Scatter | None) -> float:
    """LiDAR (Thilak et al. 2024): the effective rank of what tells images apart from their views.

    exp(−Σ p ln p) with p = λ/Σλ + 1e-7 over the D' eigenvalues λ of Sw^(−1/2) Sb Sw^(−1/2), where
    Sb is the unbiased covariance of the images' means and Sw that of the views about them, plus
    1e-4 on its diagonal. Those of L⁻¹ Sb L⁻ᵀ are the same, where Sw = L Lᵀ.
    """
    if scatter is None or scatter.views < 2 or scatter.freedom < 1:
        return math.nan
    between = scatter.between / scatter.freedom
    within = scatter.within / (scatter.n * (scatter.views - 1))
    if not (np.isfinite(between).all() and np.isfinite(within).all()):
        return math.nan
    try:
        lower = np.linalg.cholesky(within + _LIDAR_DELTA * np.eye(len(within)))
    except np.linalg.LinAlgError:  # float32's rounding beyond 1e-4: views that are huge
        return math.nan
    half = np.linalg.solve(lower, between)
    found = entropy_of(np.linalg.eigvalsh(np.linalg.solve(lower, half.T)).clip(0.0, None))
    return math.nan if found is None else found

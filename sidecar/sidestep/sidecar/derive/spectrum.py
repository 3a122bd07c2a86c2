"""Statistics of a representation's spectrum from its Gram matrix, in float64, on the CPU.

Notation: X is n×D, μ its mean, M = (X−μ)ᵀ(X−μ) its centred Gram matrix, C = M/(n−1) its unbiased
covariance with eigenvalues λ₁ ≥ λ₂ ≥ …, σ the singular values of X (uncentred). One decomposition
of M serves all figures but RankMe, which is uncentred and needs that of M + n μμᵀ. Eigenvalues
alone, twice, cost less than once with the eigenvectors that would lead from one to the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from .additive import Floats, Moments, unbiased_square

_RANKME_EPSILON: Final = 1e-7
_FLOAT32_EPSILON: Final = 2.0**-23
_ALPHA_FIRST: Final = 6
_ALPHA_LAST: Final = 100
_ALPHA_FEWEST: Final = 10
"""A slope through fewer eigenvalues says nothing."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The eigenvalues of C and what they say.

    Attributes:
        eigenvalues: (min(n − 1, D),), descending, none negative.
        figures: by suffix; what is undefined is absent.
    """

    eigenvalues: Floats
    figures: dict[str, float]


def spectrum(moments: Moments) -> Spectrum | None:
    """The spectrum of all rows; None when no Gram matrix crossed, or there are no two rows.

    The figures are `rank`, `rank_fraction` (of min(n, D)), `pr`, `nesum`, `entropy_rank`, `alpha`
    and `condition`: see the functions of these names.
    """
    gram, n = moments.gram, moments.rows.n
    if gram is None or n < 2 or not np.isfinite(gram).all():
        return None
    with np.errstate(all="ignore"):
        try:
            eigenvalues = descending(gram)[: min(n - 1, moments.d)] / (n - 1)
            found = dict(_figures(moments.rows.mean, gram, eigenvalues, n))
        except np.linalg.LinAlgError:  # no convergence: the other figures must not suffer
            return None
    return Spectrum(eigenvalues, {k: v for k, v in found.items() if math.isfinite(v)})


def _figures(
    mean: Floats, gram: Floats, eigenvalues: Floats, n: int
) -> Iterator[tuple[str, float]]:
    d = len(gram)
    rank = rankme(mean, gram, n)
    if rank is not None:
        yield "rank", rank
        yield "rank_fraction", rank / min(n, d)
    for name, found in (
        ("pr", participation_ratio(gram, n)),
        ("nesum", nesum(eigenvalues)),
        ("entropy_rank", entropy_rank(eigenvalues)),
        ("alpha", alpha(eigenvalues, d)),
        ("condition", condition(eigenvalues, d)),
    ):
        if found is not None:
            yield name, found


def descending(matrix: Floats) -> Floats:
    """The eigenvalues of a symmetric matrix, largest first, those below zero by rounding 0."""
    return np.linalg.eigvalsh(matrix)[::-1].clip(0.0, None)


def rankme(mean: Floats, gram: Floats, n: int) -> float | None:
    """RankMe, the exponential entropy of the singular values (Garrido et al. 2023, eq. 1).

    p = σ/Σσ + 1e-7, exp(−Σ p ln p), over the min(n, D) singular values of the uncentred X, which
    are the square roots of the eigenvalues of XᵀX = M + n μμᵀ. Small ones are not cut: that would
    wreck power laws. So a collapsed representation whose Gram matrix was made in float32 reads a
    little high (8.3 for rank 8); `participation_ratio` does not.

    Args:
        mean: (D,).
        gram: (D, D), centred.
        n: number of rows.

    Returns:
        From 1 to min(n, D), or by ε a little beside; None when X is zero or not finite.
    """
    uncentred = np.outer(mean, n * mean)
    uncentred += gram
    if not np.isfinite(uncentred).all():
        return None
    return entropy_of(np.sqrt(descending(uncentred)[: min(n, len(mean))]))


def entropy_of(numbers: Floats) -> float | None:
    """exp(−Σ p ln p) with p = x/Σx + 1e-7, as RankMe and LiDAR have it; None when all are zero."""
    total = float(numbers.sum())
    if total == 0.0:
        return None
    p = numbers / total + _RANKME_EPSILON
    return float(np.exp(-(p * np.log(p)).sum()))


def participation_ratio(gram: Floats, n: int) -> float | None:
    """(tr C)² / tr C², with tr C² estimated without bias (Srivastava 2005).

    Args:
        gram: (D, D), centred.
        n: number of rows.

    Returns:
        About the number of directions that carry the variance; None when it is undefined: fewer
        than three rows, no variance, or too few rows for the estimate to be positive.
    """
    m = n - 1
    if m < 2:
        return None
    trace = float(np.trace(gram)) / m
    return participation_ratio_of(
        trace, unbiased_square(trace, float(np.vdot(gram, gram)) / m**2, n)
    )


def participation_ratio_of(trace: float, square: float) -> float | None:
    """The same from tr C and the unbiased estimate of tr C²."""
    if not (math.isfinite(trace) and math.isfinite(square) and trace > 0 and square > 0):
        return None
    return trace / square * trace


def nesum(eigenvalues: Floats) -> float | None:
    """NESum (He, Ozay 2022), tr C / λ₁, the sum of λ/λ₁: 1 when one direction is all."""
    largest = float(eigenvalues[0])
    return float((eigenvalues / largest).sum()) if largest > 0 else None


def entropy_rank(eigenvalues: Floats) -> float | None:
    """exp(−Σ p ln p) with p = λ/Σλ: the Hill number of order 1 (Roy, Vetterli 2007, of λ).

    Centred, without an ε, and of variances where RankMe is of singular values.
    """
    total = float(eigenvalues.sum())
    p = eigenvalues[eigenvalues > 0] / total
    return float(np.exp(-(p * np.log(p)).sum())) if total > 0 else None


def alpha(eigenvalues: Floats, d: int) -> float | None:
    """α-ReQ: λ_j ∝ j^(−α) (Agrawal et al. 2022); near 1 is healthy, far above is collapse.

    Minus the slope of ln λ_j on ln j by least squares, weights 1/j, j from 6 to 100 as far as the
    numerical rank goes (`numerical_rank`); None when that leaves fewer than 10.
    """
    last = min(_ALPHA_LAST, numerical_rank(eigenvalues, d))
    if last - _ALPHA_FIRST + 1 < _ALPHA_FEWEST:
        return None
    j = np.arange(_ALPHA_FIRST, last + 1, dtype=np.float64)
    x, y = np.log(j), np.log(eigenvalues[_ALPHA_FIRST - 1 : last])
    w = 1 / j / (1 / j).sum()
    x = x - w @ x
    return -float((w * x) @ y / ((w * x) @ x))


def condition(eigenvalues: Floats, d: int) -> float | None:
    """λ₁ / λ_r, where r is the numerical rank; None when there is no variance."""
    rank = numerical_rank(eigenvalues, d)
    return float(eigenvalues[0] / eigenvalues[rank - 1]) if rank else None


def numerical_rank(eigenvalues: Floats, d: int) -> int:
    """How many eigenvalues are over λ₁ · D · 2⁻²³: what is under it is float32's noise.

    The rule of ``numpy.linalg.matrix_rank``, for a matrix that crossed in float32.
    """
    return int((eigenvalues > eigenvalues[0] * d * _FLOAT32_EPSILON).sum())

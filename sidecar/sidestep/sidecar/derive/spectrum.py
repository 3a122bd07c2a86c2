"""Statistics of a representation from its moments, in float64, on the CPU.

Notation: X is n×D, μ its mean, M = (X−μ)ᵀ(X−μ) its centred Gram matrix, C = M/(n−1) its unbiased
covariance, σ its singular values (uncentred).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

_RANKME_EPSILON: Final = 1e-7


def rankme(mean: Matrix, gram: Matrix, n: int) -> float | None:
    """RankMe, the exponential entropy of the singular values (Garrido et al. 2023, eq. 1).

    p = σ/Σσ + 1e-7, exp(−Σ p ln p), over the min(n, D) singular values of the uncentred X, which
    are the square roots of the eigenvalues of XᵀX = M + n μμᵀ.

    Args:
        mean: (D,).
        gram: (D, D), centred.
        n: number of rows.

    Returns:
        From 1 to min(n, D); None when X is zero or not finite.
    """
    uncentred = gram + n * np.outer(mean, mean)
    if not np.isfinite(uncentred).all():
        return None
    eigenvalues = np.linalg.eigvalsh(uncentred)[::-1][: min(n, len(mean))]
    # Rounding makes small eigenvalues negative.
    sigma = np.sqrt(np.clip(eigenvalues, 0.0, None))
    total = float(sigma.sum())
    if total == 0.0:
        return None
    p = sigma / total + _RANKME_EPSILON
    return float(np.exp(-(p * np.log(p)).sum()))


def participation_ratio(gram: Matrix, n: int) -> float | None:
    """(tr C)² / tr C², with tr C² estimated without bias (Srivastava 2005).

    t = m²/((m−1)(m+2)) · (tr C² − (tr C)²/m) with m = n−1.

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
    square = float((gram * gram).sum()) / m**2
    debiased = m**2 / ((m - 1) * (m + 2)) * (square - trace**2 / m)
    if not np.isfinite(debiased) or debiased <= 0.0:
        return None
    return trace**2 / debiased

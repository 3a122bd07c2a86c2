"""Figures of representations as a training makes them: really sampled, with all their noise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt


def power_law(dims: int, exponent: float) -> npt.NDArray[np.float64]:
    """Eigenvalues 1/j^exponent of `dims` dimensions."""
    return np.arange(1.0, dims + 1.0) ** -exponent


def figures(rows: npt.NDArray[np.float64]) -> dict[str, float]:
    """What is derived of `rows` (n, D), by the formulas that the derivers document."""
    n, dims = rows.shape
    mean = rows.mean(0)
    centred = rows - mean
    gram = centred @ centred.T if n < dims else centred.T @ centred
    m = n - 1
    trace, square = np.trace(gram) / m, (gram * gram).sum() / m**2
    debiased = m**2 / ((m - 1) * (m + 2)) * (square - trace**2 / m)
    found = {"n_images": float(n), "n_dims": float(dims), "nonfinite": 0.0, "std": trace**0.5}
    total = trace + mean @ mean
    if total > 0:
        found["variance_share"] = trace / total
    if debiased > 0:
        found["pr_images"] = trace**2 / debiased
    return found


def sampled(
    rng: np.random.Generator,
    spectrum: npt.NDArray[np.float64],
    images: int,
    many: int,
    *,
    scale: float = 1.0,
    mean: float = 0.3,
) -> Iterator[dict[str, float]]:
    """Figures of `many` batches of Gaussian rows with this spectrum of their covariance."""
    deviations = np.sqrt(spectrum)
    for _ in range(many):
        rows = rng.standard_normal((images, len(spectrum))) * deviations + mean
        yield figures(rows * scale)

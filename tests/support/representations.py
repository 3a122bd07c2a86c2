"""Every statistic of a representation from its raw rows, by its formula, in float64 with numpy.

Written from the definitions and not from moments: pairs are compared one by one, spectra are those
of a singular value decomposition. What is undefined is absent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def reference(
    x: npt.NDArray[Any],
    *,
    positions: npt.NDArray[np.int64] | None = None,
    paired: npt.NDArray[Any] | None = None,
    due: bool = True,
) -> dict[str, float]:
    """The figures of `x`, (B, D) or (B, N, D), by suffix.

    Args:
        x: finite.
        positions: (B,), the token that each image gives to `pr_images`.
        paired: the same shape.
        due: with the spectrum.
    """
    x = np.asarray(x, np.float64)
    cube = x[:, None] if x.ndim == 2 else x
    b, tokens, d = cube.shape
    rows = cube.reshape(-1, d)
    n = len(rows)
    drawn = cube[np.arange(b), np.arange(b) * 7 % tokens if positions is None else positions]
    norms = np.array([np.sqrt((row * row).sum()) for row in rows])
    deviations = rows.std(axis=0, ddof=1)
    total = rows.var(axis=0, ddof=1).sum()
    found = {
        "n_rows": n,
        "n_images": b,
        "n_image_tokens": b,
        "n_dims": d,
        "nonfinite": 0,
        "std": deviations.mean(),
        "norm": norms.mean(),
        "norm_cv": norms.std(ddof=1) / norms.mean(),
        "variance_share": total / (total + (rows.mean(axis=0) ** 2).sum()),
        "dead_fraction": (deviations < 0.01 * np.median(deviations)).mean(),
    }
    unit = rows[norms > 0] / norms[norms > 0, None]
    cosines = unit @ unit.T
    found["cosine"] = cosines[~np.eye(len(unit), dtype=bool)].mean()
    found["std_normalized"] = np.sqrt(d) * unit.std(axis=0, ddof=1).mean()
    found |= _ratio("pr_images", drawn) | (_spectrum(rows) if due else {})
    if b > 1 and tokens > 1:
        found |= two_way_shares(cube)
    if paired is not None:
        found |= _target(rows, np.asarray(paired, np.float64).reshape(-1, d))
    return {name: float(value) for name, value in found.items()}


def two_way_shares(cube: Floats) -> dict[str, float]:
    """The two-way split of (B, N, D), each entry's fitted parts summed one by one."""
    mean = cube.mean(axis=(0, 1), keepdims=True)
    image = cube.mean(axis=1, keepdims=True) - mean + 0 * cube
    position = cube.mean(axis=0, keepdims=True) - mean + 0 * cube
    residual = cube - mean - image - position
    total = ((cube - mean) ** 2).sum()
    parts = {"image": image, "position": position, "residual": residual}
    return {f"share_{name}": (part**2).sum() / total for name, part in parts.items()}


def singular_rank(rows: Floats) -> float:
    """RankMe, by a singular value decomposition of the rows."""
    sigma = np.linalg.svd(rows, compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


def covariance_eigenvalues(rows: Floats) -> Floats:
    """Of the unbiased covariance, largest first: (min(n − 1, D),)."""
    n, d = rows.shape
    sigma = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)
    return (sigma**2 / (n - 1))[: min(n - 1, d)]


def slope(eigenvalues: Floats, last: int) -> float:
    """α by numpy's weighted fit, j from 6 to `last`."""
    j = np.arange(6, last + 1)
    # polyfit squares its weights.
    line = np.polyfit(np.log(j), np.log(eigenvalues[5:last]), 1, w=j**-0.5)
    return -float(line[0])


def _ratio(name: str, rows: Floats) -> dict[str, float]:
    m = len(rows) - 1
    if m < 2:
        return {}
    c = np.cov(rows, rowvar=False).reshape(rows.shape[1], -1)
    square = m**2 / ((m - 1) * (m + 2)) * (np.trace(c @ c) - np.trace(c) ** 2 / m)
    return {name: np.trace(c) ** 2 / square} if square > 0 else {}


def _spectrum(rows: Floats) -> dict[str, float]:
    n, d = rows.shape
    eigenvalues = covariance_eigenvalues(rows)
    p = eigenvalues / eigenvalues.sum()
    rank = singular_rank(rows)
    found = {
        "rank": rank,
        "rank_fraction": rank / min(n, d),
        "nesum": eigenvalues.sum() / eigenvalues[0],
        "entropy_rank": np.exp(-sum(q * np.log(q) for q in p if q > 0)),
        "condition": eigenvalues[0] / eigenvalues[-1],
    }
    if len(eigenvalues) >= 15:
        found["alpha"] = slope(eigenvalues, min(100, len(eigenvalues)))
    return found | _ratio("pr", rows)


def _target(rows: Floats, pairs: Floats) -> dict[str, float]:
    cosines = [
        a @ b / np.sqrt((a @ a) * (b @ b))
        for a, b in zip(rows, pairs, strict=True)
        if a @ a * (b @ b)
    ]
    variance = pairs.var(axis=0, ddof=1).sum()
    error = np.mean([(a - b) @ (a - b) for a, b in zip(rows, pairs, strict=True)])
    return {
        "target_cosine": float(np.sum(cosines)) / len(rows),
        "target_variance": variance,
        "target_error": error / variance,
    }

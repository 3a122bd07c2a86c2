"""Optional statistics of a representation, each by the convention of its paper.

What compares all pairs of rows looks at `MAX_PAIRED_ROWS` of them at most, evenly spaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from .draws import directions
from .masked import Rows, centred, gram, rows_of, squared_frobenius

MAX_PAIRED_ROWS: Final = 2048
"""All pairs of so many rows are 16 MiB of float32."""

PAIRED_EXTRAS: Final = ("alignment",)
"""Those that need the other branch."""

_SLICES: Final = 256
_KNOTS: Final = 17
_KNOT_RANGE: Final = 5.0


def uniformity(units: Rows) -> Any:
    """The ln of the mean of exp(−2‖zᵢ − zⱼ‖²) over pairs i ≠ j of unit rows.

    Wang and Isola 2020, t = 2. Isotropic: about −4 + 8/D. Collapsed: 0.
    """
    z = _few(units)
    affinity = (4 * (_cosines(z) - 1)).clamp(max=0).exp() * (z.kept @ z.kept.T)
    total = _off_diagonal(affinity).sum()
    return torch.where(z.count > 1, total / (z.count * (z.count - 1)), torch.nan).log()


def koleo(units: Rows) -> Any:
    """−mean ln(minⱼ ‖zᵢ − zⱼ‖ + 1e-8) over unit rows (Sablayrolles et al. 2019, as in DINOv2)."""
    z = _few(units)
    missing = (z.kept @ z.kept.T) == 0
    cosines = _off_diagonal(_cosines(z).masked_fill(missing, -2.0), -2.0)
    # The distance itself is taken from the rows: 2 − 2cos has no digits left for close ones.
    nearest = z.data.index_select(0, cosines.argmax(dim=1))
    logs = (torch.linalg.vector_norm(z.data - nearest, dim=1) + 1e-8).log()
    mean = (logs * z.kept[:, 0]).sum() / z.count.clamp(min=1)
    return torch.where(z.count > 1, -mean, torch.nan)


def alignment(units: Rows, other: Rows) -> Any:
    """The mean of ‖x̂ − ŷ‖² over the unit rows of a pair (Wang and Isola 2020, α = 2)."""
    norms = torch.linalg.vector_norm(other.data, dim=1, keepdim=True)
    kept = units.kept * other.kept * (norms > 0)
    difference = (units.data - other.data / torch.where(norms > 0, norms, 1.0)) * kept
    count = kept.sum()
    return torch.where(count > 0, difference.square().sum() / count, torch.nan)


def vicreg_variance(rows: Rows) -> Any:
    """The mean over dimensions of max(0, 1 − √(var + 1e-4)) (VICReg: Bardes et al. 2022, γ = 1)."""
    variance = centred(rows).squares / (rows.count - 1)
    hinge = (1 - (variance + 1e-4).sqrt()).clamp(min=0).mean()
    return torch.where(rows.count > 1, hinge, torch.nan)


def vicreg_covariance(rows: Rows) -> Any:
    """Σ of C's squared off-diagonal elements, by D (VICReg: Bardes et al. 2022); C is unbiased."""
    centre = centred(rows)
    total = squared_frobenius(centre.rows, centre.squares.sum()) - centre.squares.square().sum()
    value = total.clamp(min=0) / (rows.count - 1).square() / centre.mean.shape[0]
    return torch.where(rows.count > 1, value, torch.nan)


def sigreg(rows: Rows, seed: int) -> Any:
    """Mean Epps-Pulley statistic over random directions (SIGReg: Balestriero and LeCun 2025).

    Of x·a for 256 unit directions a, drawn by the step: n ∫ |φ̂(t) − e^(−t²/2)|² e^(−t²/2) dt, with
    φ̂ the empirical characteristic function, by the trapezoidal rule on 17 points in [−5, 5].
    """
    few = _few(rows)
    sliced = few.data @ directions(rows.data.shape[1], _SLICES, seed, rows.data.device)
    count = few.count.clamp(min=1)
    # Even in t: half of the points, twice their weight.
    width = 2 * _KNOT_RANGE / (_KNOTS - 1)
    total = sliced.new_zeros(_SLICES)
    for knot in range(1, _KNOTS // 2 + 1):
        t = knot * width
        normal = 2.718281828459045 ** (-t * t / 2)
        real = (torch.cos(sliced * t) * few.kept).sum(dim=0) / count
        imaginary = (torch.sin(sliced * t) * few.kept).sum(dim=0) / count
        weight = width if knot == _KNOTS // 2 else 2 * width
        total = total + ((real - normal).square() + imaginary.square()) * (normal * weight)
    return torch.where(few.count > 1, total.mean() * few.count, torch.nan)


def lidar(views: Any) -> tuple[Any, Any, Any]:
    """What LiDAR (Thilak et al. 2024) is made of: the daemon solves the eigenproblem.

    Args:
        views: (V, B, D): V views of each of B images. Images with a non-finite view are left out.

    Returns:
        How many images were used; Σᵢ(μᵢ−μ)(μᵢ−μ)ᵀ and Σᵢ Σᵥ(xᵢᵥ−μᵢ)(xᵢᵥ−μᵢ)ᵀ, each (D, D).
    """
    v, b, d = views.shape
    each = rows_of(views.transpose(0, 1).reshape(b, v * d))
    grid = each.data.reshape(b, v, d)
    # From the first view, for the mean of large numbers is rounded.
    offset = grid[:, :1]
    means = (grid - offset).mean(dim=1) + offset[:, 0]
    left = (grid - means.unsqueeze(1)).mean(dim=1, keepdim=True)
    within = (grid - means.unsqueeze(1) - left).reshape(b * v, d)
    between = centred(Rows(means, each.kept, each.count, None)).rows
    return each.count, gram(between), gram(within)


_OF_ROWS: Final[Mapping[str, Callable[[Rows], Any]]] = {
    "vicreg_covariance": vicreg_covariance,
    "vicreg_variance": vicreg_variance,
}
_OF_UNITS: Final[Mapping[str, Callable[[Rows], Any]]] = {"koleo": koleo, "uniformity": uniformity}

EXTRAS: Final = (*_OF_ROWS, *_OF_UNITS, "alignment", "lidar", "sigreg")
"""The names of all."""


def extra(name: str, rows: Rows, units: Rows, other: Rows | None, seed: int) -> Any:
    """The optional statistic of that name, 0-d float32; NaN where it is not defined."""
    if name in _OF_ROWS:
        return _OF_ROWS[name](rows)
    if name in _OF_UNITS:
        return _OF_UNITS[name](units)
    if name == "sigreg":
        return sigreg(rows, seed)
    assert other is not None
    return alignment(units, other)


def _few(rows: Rows) -> Rows:
    """Rows evenly spaced, `MAX_PAIRED_ROWS` at most."""
    stride = -(-rows.data.shape[0] // MAX_PAIRED_ROWS)
    if stride == 1:
        return rows
    kept = rows.kept[::stride]
    return Rows(rows.data[::stride], kept, kept.sum(), rows.broken)


def _cosines(units: Rows) -> Any:
    # The Gram matrix of the columns: split products, whatever fast formats are allowed.
    return gram(units.data.T)


def _off_diagonal(matrix: Any, diagonal: float = 0.0) -> Any:
    here = torch.eye(matrix.shape[0], dtype=torch.bool, device=matrix.device)
    return matrix.masked_fill(here, diagonal)

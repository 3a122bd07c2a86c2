"""The moments of one observation of a representation, in the order in which they travel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from .extras import extra, lidar
from .masked import (
    Centred,
    Rows,
    centred,
    centred_numbers,
    gram,
    only,
    rows_of,
    squared_frobenius,
    units_of,
)

SCALARS: Final = 16
"""Entries of the first array, before those of the optional statistics."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be computed; nothing of it depends on data.

    Attributes:
        due: whether the Gram matrices are wanted.
        seed: for draws, below 2³².
        extras: names of optional statistics.
    """

    due: bool
    seed: int = 0
    extras: tuple[str, ...] = ()


def moments(
    x: Any,
    tokens: Any = None,
    y: Any = None,
    loss: Any = None,
    views: Any = None,
    *,
    plan: Plan,
) -> tuple[Any, ...]:
    """Moments and cheap statistics, each a float32 tensor on the device of `x`.

    Args:
        x: (B, N, D), any float dtype.
        tokens: (I, D), one token an image; None: `x` has N = 1, and its rows are that.
        y: the other branch, of x's shape.
        loss: 0-d.
        views: (V, B, Dv), for LiDAR.
        plan: what is wanted.

    Returns:
        scalars: [n, non-finite elements, mean norm, sum of squared deviations of the norms, rows
        with a direction, I, trace and squared Frobenius norm of the centred Gram matrix of the one
        token an image, two-way sums of squares by image, by position and in all, sum of cosines,
        sum of squared distances, trace of y's centred Gram matrix, pairs, loss, and the optional
        statistics]; mean (D,); sums of squared deviations (D,); sum of the unit rows (D,); their
        sums of squared deviations (D,); with y its mean (D,). When due: centred Gram matrix (D, D);
        with `tokens` their mean (D,) and centred Gram matrix (D, D); with B ≥ 2 and N ≥ 2 the
        mean of each position (N, D); with LiDAR its scatter between and within images (Dv, Dv).
        What is not there is NaN.
    """
    b, n, d = x.shape
    rows = rows_of(x.reshape(-1, d))
    centre = centred(rows)
    norms = torch.linalg.vector_norm(rows.data, dim=1)
    norm_mean, norm_squares = centred_numbers(norms, rows.kept)
    units = units_of(rows, norms)
    unit_centre = centred(units)
    matrix = gram(centre.rows) if plan.due else None

    few = rows if tokens is None else rows_of(tokens)
    few_centre = centre if tokens is None else centred(few)
    few_matrix = matrix if tokens is None or not plan.due else gram(few_centre.rows)
    trace = few_centre.squares.sum()
    frobenius = squared_frobenius(few_centre.rows, trace, few_matrix)

    by_image, by_position, in_all, position_means = two_way(centre, rows, b, n)
    scalars = [rows.count, rows.broken, norm_mean, norm_squares, units.count]
    scalars += [few.count, trace, frobenius, by_image, by_position, in_all]
    arrays = [centre.mean, centre.squares, units.data.sum(dim=0), unit_centre.squares]
    if y is None:
        other = None
        scalars += [_nan(x)] * 4
    else:
        other = rows_of(y.reshape(-1, d))
        numbers, mean = paired(rows, other)
        scalars += numbers
        arrays.append(mean)
    scalars.append(_nan(x) if loss is None else loss.float())
    if plan.due:
        arrays.append(matrix)
        arrays += [few_centre.mean, few_matrix] if tokens is not None else []
        arrays += [position_means] if position_means is not None else []
    for name in plan.extras:
        if name == "lidar":
            classes, *scatter = lidar(views)
            scalars.append(classes)
            arrays += scatter if plan.due else []
        else:
            scalars.append(extra(name, rows, units, other, plan.seed))
    return (torch.stack(scalars), *arrays)


def two_way(centre: Centred, rows: Rows, b: int, n: int) -> tuple[Any, Any, Any, Any]:
    """Sums of squares by image, by position and in all, and the mean of each position (n, d).

    Over the images whose tokens are all finite; NaN (and None) with one image or one position.
    """
    if b < 2 or n < 2:
        nan = _nan(rows.data)
        return nan, nan, nan, None
    whole = rows.kept.reshape(b, n).amin(dim=1).reshape(b, 1, 1)
    images = whole.sum().clamp(min=1)
    grid = centre.rows.reshape(b, n, -1)
    image_means = grid.mean(dim=1) * whole[:, 0]
    # Zero, but for images that are left out.
    grand = image_means.sum(dim=0) / images
    position_means = (grid * whole).sum(dim=0) / images - grand
    by_image = (image_means - grand * whole[:, 0]).square().sum() * n
    by_position = position_means.square().sum() * images
    squares = centre.row_squares.reshape(b, n) * whole[:, 0]
    in_all = (squares.sum() - images * n * grand.square().sum()).clamp(min=0)
    in_all = in_all * (centre.squares.sum() > 0)  # not the rounding of constant rows
    known = torch.isfinite(centre.squares.sum()) & (whole.sum() > 1)
    by_image, by_position, in_all = (
        torch.where(known, each, torch.nan) for each in (by_image, by_position, in_all)
    )
    return by_image, by_position, in_all, centre.mean + grand + position_means


def paired(rows: Rows, other: Rows) -> tuple[Sequence[Any], Any]:
    """[sum of cosines, sum of squared distances, trace of y's Gram, pairs], and y's mean (d,)."""
    x, y = only(rows, other.kept), only(other, rows.kept)
    product = (x.data * y.data).sum(dim=1)
    norms = torch.linalg.vector_norm(x.data, dim=1) * torch.linalg.vector_norm(y.data, dim=1)
    cosines = (product / torch.where(norms > 0, norms, 1.0)).sum()
    difference = _difference(x, y)
    centre = centred(y)
    return [cosines, difference.square().sum(), centre.squares.sum(), y.count], centre.mean


def _difference(x: Rows, y: Rows) -> Any:
    if x.wide is None or y.wide is None:
        return x.data - y.data
    return (x.wide - y.wide).float()


def result_numbers(
    shape: tuple[int, int, int],
    plan: Plan,
    *,
    paired: bool = False,
    scatter_d: int = 0,
) -> int:
    """How many numbers `moments` returns for an `x` of this shape, and views of `scatter_d`."""
    b, n, d = shape
    numbers = SCALARS + len(plan.extras) + (4 + paired) * d
    if plan.due:
        numbers += d * d + ((d + d * d) if n > 1 else 0) + (n * d if n > 1 and b > 1 else 0)
        numbers += 2 * scatter_d**2
    return numbers


def _nan(like: Any) -> Any:
    return torch.full((), torch.nan, dtype=torch.float32, device=like.device)

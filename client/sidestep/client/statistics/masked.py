"""Centring, units and products of the rows that a mask lets through, in float32.

Every row that is left out is zero, before and after, so that sums run over whole tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

_ROUNDING: Final = 2.0**-28
"""A dimension whose deviations have a norm below this share of its mean is constant: float32
numbers differ by 2⁻²⁴ of their size or more, and centring twice leaves about 2⁻⁴⁰ of it in each."""

_TINIEST: Final = 1e-36
"""Sums of squares below this have lost digits in float32, or are about to."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of which some are left out.

    Attributes:
        data: (n, d) float32; zero where left out.
        kept: (n, 1) float32: 1, or 0 where left out.
        count: 0-d float32: how many are kept.
        broken: 0-d float32: how many elements were not finite.
        wide: (n, d) float64, if the input was; centred as that, since float32 would round it.
    """

    data: Any
    kept: Any
    count: Any
    broken: Any
    wide: Any = None


@dataclass(frozen=True, slots=True)
class Centred:
    """Rows without their mean.

    Attributes:
        mean: (d,).
        rows: (n, d): the deviations, exactly zero in dimensions that are constant.
        squares: (d,): sums of their squares.
        row_squares: (n,): the same by rows.
    """

    mean: Any
    rows: Any
    squares: Any
    row_squares: Any


def rows_of(x: Any) -> Rows:
    """The rows of `x` (n, d), of any float dtype, without those that have a non-finite element."""
    data = x.float()
    # x − x is zero, or NaN where x is not finite; ten times as fast as isfinite on a CPU.
    broken = (data - data).ne_(0).sum(dim=1, keepdim=True)
    kept = broken == 0
    wide = torch.where(kept, x, 0.0) if x.dtype is torch.float64 else None
    mask = kept.float()
    return Rows(torch.where(kept, data, 0.0), mask, mask.sum(), broken.sum(), wide)


def only(rows: Rows, kept: Any) -> Rows:
    """Those of `rows` that `kept` (n, 1), 1 or 0, lets through as well."""
    kept = kept * rows.kept
    wide = None if rows.wide is None else rows.wide * kept
    return Rows(rows.data * kept, kept, kept.sum(), rows.broken, wide)


def centred(rows: Rows) -> Centred:
    """Mean and deviations; of no rows at all: NaN and zeros.

    Centred BEFORE any product: XᵀX − nμμᵀ in float32 loses a small spread beside a large mean. And
    centred twice: the mean itself is rounded to float32, which would be taken for spread.
    """
    count = rows.count.clamp(min=1)
    if rows.wide is None:
        first = rows.data.sum(dim=0) / count
        deviations = torch.addcmul(rows.data, rows.kept, first, value=-1)
    else:
        exact = rows.wide.sum(dim=0) / count
        first = exact.float()
        deviations = ((rows.wide - exact) * rows.kept).float()
    left = deviations.sum(dim=0) / count
    # In place where it is ours: fresh memory costs a CPU more than the arithmetic.
    deviations.addcmul_(rows.kept, left, value=-1)
    squared = deviations.square()
    squares = squared.sum(dim=0)
    size = first.abs()
    varying = squares.sqrt() > size * _ROUNDING
    # Squares that leave float32's range are not told: neither as zero nor as infinity.
    largest = torch.maximum(deviations.max(), -deviations.min())
    lost = (largest < _TINIEST**0.5) & (largest > size.max() * _ROUNDING)
    squares = torch.where(lost | ~torch.isfinite(squares), torch.nan, squares * varying)
    mean = torch.where(rows.count > 0, first + left, torch.nan)
    return Centred(mean, deviations.mul_(varying), squares, squared.sum(dim=1))


def centred_numbers(numbers: Any, kept: Any) -> tuple[Any, Any]:
    """Mean and sum of squared deviations of `numbers` (n,) where `kept` (n, 1) is 1."""
    column = numbers.unsqueeze(1) * kept
    found = centred(Rows(column, kept, kept.sum(), None))
    return found.mean[0], found.squares[0]


def units_of(rows: Rows, norms: Any) -> Rows:
    """The rows divided by their norms (n,); those without a direction are left out."""
    column = norms.unsqueeze(1)
    kept = rows.kept * ((column > 0) & torch.isfinite(column))
    return Rows(rows.data / torch.where(kept > 0, column, torch.inf), kept, kept.sum(), None)


def gram(rows: Any) -> Any:
    """RowsᵀRows for (n, d), to float32's precision, whatever fast formats products may use.

    A trainer may have allowed TF32 (10 bits of mantissa) or bfloat16 inside of float32 products,
    and that switch is the process's, not ours. So each number is split into the part that
    bfloat16 holds and the rest: XᵀX = HᵀH + S + Sᵀ with S = Lᵀ(H + L/2). HᵀH has exact factors in
    every format, and S is 2⁻⁹ of it, so that rounding its factors to TF32 costs 2⁻²⁰ of a product,
    to bfloat16 2⁻¹⁷; the sums are float32's.
    """
    high = rows.bfloat16().float()
    low = rows - high
    cross = low.T @ (high + low / 2)
    return high.T @ high + (cross + cross.T)


def squared_frobenius(rows: Any, trace: Any, gram_matrix: Any = None) -> Any:
    """‖RowsᵀRows‖²_F, from the smaller of the two Gram matrices, unless one is given.

    A participation ratio needs three digits of it, which products in TF32 and bfloat16 have. NaN
    where float32 cannot hold it.

    Args:
        rows: (n, d), centred.
        trace: 0-d, the sum of their squares.
        gram_matrix: either of the Gram matrices.
    """
    if gram_matrix is None:
        gram_matrix = rows @ rows.T if rows.shape[0] < rows.shape[1] else rows.T @ rows
    share = gram_matrix / torch.where(trace > 0, trace, 1.0)
    total = share.square().sum() * trace * trace
    told = torch.isfinite(total) & ((total > _TINIEST) | (trace == 0))
    return torch.where(told, total, torch.nan)

"""The numbers of several ranks to one, or to a spread: whatever order they came in.

Sums are exact and rounded once (`math.fsum`). A NaN of one rank makes everything that is made with
it NaN, the least and the greatest too: a number that were shown without it would not be the job's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SCALE = 2.0**-64
"""As many summands as there can be ranks stay within float64's range when they are scaled by it."""


def reduced(reduce: str, numbers: Sequence[float]) -> Mapping[str, float]:
    """What is made of the numbers of some ranks, by the suffix of its tag.

    Args:
        reduce: one of `REDUCTIONS`; ``"spread"`` gives ``""`` (the mean), ``_std`` (of all ranks,
            that is over n), ``_min`` and ``_max``.
        numbers: one of each rank, at least one.
    """
    if reduce == "spread":
        mean = _mean(numbers)
        std = _std(numbers, mean)
        return {"": mean, "_std": std, "_min": _least(numbers), "_max": _greatest(numbers)}
    return {"": _ONE[reduce](numbers)}


def reduced_columns(reduce: str, table: npt.NDArray[np.float64]) -> Mapping[str, list[float]]:
    """`reduced` of each column.

    Args:
        reduce: one of `REDUCTIONS`.
        table: shape (ranks, tags), at least one rank.

    Returns:
        By suffix, a number of each column.
    """
    if reduce in ("min", "max"):
        return {"": (table.min(axis=0) if reduce == "min" else table.max(axis=0)).tolist()}
    columns: list[list[float]] = table.T.tolist()
    if reduce != "spread":
        try:
            sums = list(map(math.fsum, columns))
        except (OverflowError, ValueError):
            pass
        else:
            return {"": sums if reduce == "sum" else _means(sums, table)}
    each = [reduced(reduce, column) for column in columns]
    return {suffix: [found[suffix] for found in each] for suffix in each[0]}


def _means(sums: list[float], table: npt.NDArray[np.float64]) -> list[float]:
    """As `_mean`, of all columns; Python's comparisons would take longer than the sums."""
    lows, highs = table.min(axis=0).tolist(), table.max(axis=0).tolist()
    ranks = len(table)
    return [
        mean if mean != mean else min(max(mean, low), high)  # noqa: PLR0124 - NaN
        for mean, low, high in zip((x / ranks for x in sums), lows, highs, strict=True)
    ]


def _mean(numbers: Sequence[float]) -> float:
    try:
        mean = math.fsum(numbers) / len(numbers)
    except OverflowError:
        mean = math.fsum(number * _SCALE for number in numbers) / len(numbers) / _SCALE
    except ValueError:  # both infinities
        return math.nan
    # Rounding twice can lead out of where a mean lies: of equal numbers it is that number.
    return mean if math.isnan(mean) else min(max(mean, min(numbers)), max(numbers))


def _sum(numbers: Sequence[float]) -> float:
    try:
        return math.fsum(numbers)
    except OverflowError:  # perhaps on the way alone
        scaled = math.fsum(number * _SCALE for number in numbers)
        return scaled / _SCALE  # infinite where it must be
    except ValueError:
        return math.nan


def _std(numbers: Sequence[float], mean: float) -> float:
    """The population's: how far the ranks are apart, not an estimate for others."""
    if not math.isfinite(mean) or not all(map(math.isfinite, numbers)):
        return math.nan
    # Of differences alone, scaled by a power of two so that no square leaves float64's range.
    apart = [number * 0.25 - mean * 0.25 for number in numbers]
    largest = max(map(abs, apart))
    if not largest:
        return 0.0
    exponent = math.frexp(largest)[1]
    squares = math.fsum(math.ldexp(x, -exponent) ** 2 for x in apart)
    try:
        return math.ldexp(math.sqrt(squares / len(numbers)), exponent + 2)
    except OverflowError:
        return math.inf


def _least(numbers: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, numbers)) else min(numbers)


def _greatest(numbers: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, numbers)) else max(numbers)


_ONE = {"mean": _mean, "sum": _sum, "min": _least, "max": _greatest}

"""Curves of precision over recall: predictions travel, or counts that somebody else made."""

from __future__ import annotations

from numbers import Real
from typing import Any, Final

from .arrays import as_array, size_of
from .base import EmitContext, InvalidValueError, Prepared, Value

MAX_THRESHOLDS: Final = 127
"""TensorBoard's own: more are not drawn."""

_MAX_COUNTS: Final = 8192
_COUNTS: Final = ("tp", "fp", "tn", "fn", "precision", "recall")


class PRCurve(Value):
    """Precision and recall of a binary classifier at many thresholds, computed in the daemon.

    Args:
        labels: what is true, any shape, at least one element: 0 or 1 (or bool).
        predictions: how likely it was said to be, the same shape, in [0, 1]. What lies outside of
            that, or is not finite, is left out.
        num_thresholds: how many, evenly from 0 to 1: from 2; over 127 means 127.
        weights: of the elements: the same shape, or one number; None for 1.

    Raises:
        InvalidValueError: when emitted, for shapes that differ or are empty, no real numbers, or
            less than two thresholds.
    """

    kind = "pr_curve"

    def __init__(
        self, labels: Any, predictions: Any, *, num_thresholds: int = 127, weights: Any = None
    ) -> None:
        self._labels = labels
        self._predictions = predictions
        self._num_thresholds = num_thresholds
        self._weights = weights

    @staticmethod
    def from_counts(
        true_positives: Any,
        false_positives: Any,
        true_negatives: Any,
        false_negatives: Any,
        precision: Any,
        recall: Any,
        *,
        num_thresholds: int | None = None,
    ) -> PRCounts:
        """The curve that these numbers describe: (n,) each, one for each threshold."""
        counts = (true_positives, false_positives, true_negatives, false_negatives)
        return PRCounts((*counts, precision, recall), num_thresholds)

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        labels = as_array(self._labels, "PRCurve labels")
        predictions = as_array(self._predictions, "PRCurve predictions")
        shape = _shape(labels)
        if size_of(labels) == 0 or _shape(predictions) != shape:
            raise InvalidValueError(
                f"PRCurve with labels of shape {shape} and predictions of shape "
                f"{_shape(predictions)}: expected the same shape, and at least one element"
            )
        info: dict[str, object] = {"num_thresholds": thresholds(self._num_thresholds)}
        arrays = [labels, predictions]
        if isinstance(self._weights, Real):
            info["weight"] = float(self._weights)
        elif self._weights is not None:
            weights = as_array(self._weights, "PRCurve weights")
            if _shape(weights) not in (shape, ()):
                raise InvalidValueError(
                    f"PRCurve weights of shape {_shape(weights)}: expected {shape}, or one number"
                )
            arrays.append(weights)
        return Prepared(self.kind, {**info, "weights": len(arrays) == 3}, arrays)


class PRCounts(Value):
    """A curve that was counted already; made by `PRCurve.from_counts`.

    Args:
        counts: true positives, false positives, true negatives, false negatives, precision and
            recall, (n,) each, one element for each of 1 to 8,192 thresholds.
        num_thresholds: what TensorBoard is told; None for n. Over 127 means 127.

    Raises:
        InvalidValueError: when emitted, for shapes that differ, or no real numbers.
    """

    kind = "pr_curve_counts"

    def __init__(self, counts: tuple[Any, ...], num_thresholds: int | None = None) -> None:
        self._counts = counts
        self._num_thresholds = num_thresholds

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        arrays = [
            as_array(count, f"PRCurve's {name}")
            for name, count in zip(_COUNTS, self._counts, strict=True)
        ]
        shapes = [_shape(array) for array in arrays]
        if len(set(shapes)) != 1 or len(shapes[0]) != 1 or not 0 < shapes[0][0] <= _MAX_COUNTS:
            raise InvalidValueError(
                f"PRCurve's {', '.join(_COUNTS)} of shapes {shapes}: expected (n,) for all of "
                f"them, with n from 1 to {_MAX_COUNTS}"
            )
        told = shapes[0][0] if self._num_thresholds is None else self._num_thresholds
        return Prepared(self.kind, {"num_thresholds": thresholds(told, least=1)}, arrays)


def thresholds(count: Any, *, least: int = 2) -> int:
    """How many thresholds are drawn when `count` are asked for.

    Raises:
        InvalidValueError: it is no integer, or less than `least`.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < least:
        raise InvalidValueError(
            f"PRCurve num_thresholds must be an int of {least} or more, not {count!r:.40}"
        )
    return min(count, MAX_THRESHOLDS)


def _shape(array: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in array.shape)

"""Histograms: all elements travel as they are, the buckets are made in the daemon."""

from __future__ import annotations

from typing import Any

from .arrays import as_array, size_of
from .base import EmitContext, InvalidValueError, Prepared, Value


class Histogram(Value):
    """The distribution of all elements of a tensor; the buckets are made in the daemon.

    Args:
        values: torch tensor, numpy array or sequence of numbers, any shape, any real dtype, at
            least one element, at most 64 MiB. bfloat16 travels as float32. Non-finite elements
            are left out of the buckets.
        bins: number of buckets; None for TensorBoard's own exponential ones.

    Raises:
        InvalidValueError: when emitted, for an empty, complex, sparse or non-numeric input.
    """

    kind = "histogram"

    def __init__(self, values: Any, *, bins: int | None = None) -> None:
        self._values = values
        self._bins = bins

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        values = as_array(self._values, "Histogram")
        if size_of(values) == 0:
            raise InvalidValueError("Histogram of an empty tensor: at least one element is needed")
        if self._bins is not None and not 1 <= self._bins <= 4096:
            raise InvalidValueError(f"Histogram bins must be from 1 to 4096, not {self._bins}")
        return Prepared(self.kind, {"bins": self._bins}, (values,))

"""The arrays of a value as numpy sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sidestep.proto import Array, Value


def only_array(value: Value) -> npt.NDArray[Any]:
    """The one array of `value`.

    Raises:
        ValueError: it has none, or several.
    """
    if len(value.arrays) != 1:
        raise ValueError(f"a value of kind {value.kind!r} has one array, not {len(value.arrays)}")
    return numpy_of(value.arrays[0])


def numpy_of(array: Array) -> npt.NDArray[Any]:
    """`array` as numpy sees it: a read-only view of the journal's bytes."""
    dtype = np.dtype(array.dtype).newbyteorder("<")
    return np.frombuffer(array.data, dtype).reshape(array.shape)

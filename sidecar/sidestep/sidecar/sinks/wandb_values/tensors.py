"""Tensors as W&B shows them: it has nothing for them as they are, so by their distribution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sidestep.proto import Array, Value

from ..rendering.arrays import only_array
from .histograms import histogram


def tensor(value: Value) -> object:
    """The distribution of the elements, of complex ones that of their magnitudes."""
    array = only_array(value)
    if value.info.get("complex"):
        with np.errstate(all="ignore"):
            array = np.hypot(array[..., 0], array[..., 1])
    elif array.dtype.kind == "b":
        array = array.view(np.uint8)
    plain = Array(array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes())
    return histogram(replace(value, info={}, arrays=(plain,)))

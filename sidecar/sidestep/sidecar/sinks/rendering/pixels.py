"""Arrays to bytes of pixels: one rule for shades and layouts, whatever shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_LAYOUT_AXES: Final[Mapping[str, tuple[int, ...]]] = {"HWC": (0, 1, 2), "CHW": (1, 2, 0)}


def pixels_of(array: npt.NDArray[Any], layout: object) -> npt.NDArray[np.uint8]:
    """`array` as bytes of shape (height, width, 1, 3 or 4)."""
    if layout == "HW" and array.ndim == 2:
        array = array[:, :, None]
    elif layout in ("HWC", "CHW") and array.ndim == 3:
        array = array.transpose(_LAYOUT_AXES[str(layout)])
    else:
        raise ValueError(f"an image of shape {array.shape} is not laid out as {layout!r:.20}")
    if 0 in array.shape or array.shape[2] not in (1, 3, 4):
        raise ValueError(f"an image has 1, 3 or 4 channels and a size, not {array.shape}")
    if array.dtype.kind == "f":
        # The same shades as in TensorBoard: cut, not rounded.
        shades = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
        array = (shades.clip(0, 1) * np.float32(255)).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"pixels are uint8, or floats from 0 to 1, not {array.dtype}")
    return np.ascontiguousarray(array)

"""Arrays to bytes of pixels: one rule for shades and layouts, whatever shows them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

_CHUNK: Final = 1 << 18
"""Elements that are converted at a time: they stay in the cache, and memory stays small."""


def pixels_of(array: npt.NDArray[Any], layout: object) -> Pixels:
    """One picture as bytes of shape (height, width, 1, 3 or 4)."""
    return _arranged(array, layout, "HWC")


def batch_of(array: npt.NDArray[Any], layout: object) -> Pixels:
    """Several pictures as bytes of shape (n, height, width, 1, 3 or 4)."""
    return _arranged(array, layout, "NHWC")


def shades_of(array: npt.NDArray[Any]) -> Pixels:
    """The same array in bytes: floats from 0 to 1 are cut to that, and NaN is black.

    The shades are those of `torch.utils.tensorboard`, which does not round.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.view(np.uint8) * np.uint8(255)
    if array.dtype.kind != "f":
        raise ValueError(f"pixels are uint8, bool, or floats from 0 to 1, not {array.dtype}")
    flat = array.reshape(-1)
    shades = np.empty(flat.shape, np.uint8)
    with np.errstate(over="ignore"):
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK].astype(np.float32)
            np.nan_to_num(part, copy=False, nan=0.0, posinf=1.0, neginf=0.0)
            np.clip(part, 0, 1, out=part)
            part *= np.float32(255)
            shades[start : start + _CHUNK] = part
    return shades.reshape(array.shape)


def colored(pixels: Pixels) -> Pixels:
    """The same with three channels or four: what is grey gets red, green and blue alike."""
    return pixels.repeat(3, axis=-1) if pixels.shape[-1] == 1 else pixels


def _arranged(array: npt.NDArray[Any], layout: object, wanted: str) -> Pixels:
    if not isinstance(layout, str) or len(layout) != array.ndim:
        raise ValueError(f"an image of shape {array.shape} is not laid out as {layout!r:.20}")
    if "C" not in layout:
        array, layout = array[..., None], f"{layout}C"
    if sorted(layout) != sorted(wanted):
        raise ValueError(f"{layout!r:.20} is no layout of {wanted}")
    if 0 in array.shape or array.shape[layout.index("C")] not in (1, 3, 4):
        raise ValueError(f"an image has 1, 3 or 4 channels and a size, not {array.shape}")
    arranged = shades_of(array).transpose([layout.index(axis) for axis in wanted])
    return np.ascontiguousarray(arranged)

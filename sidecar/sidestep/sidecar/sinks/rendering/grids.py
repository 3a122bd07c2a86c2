"""Several pictures in one: a grid of images, frames of several videos, the panels of a mask."""

from __future__ import annotations

from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from sidestep.proto import Value

from .arrays import numpy_of, only_array
from .pixels import Pixels, batch_of, colored, pixels_of, shades_of

_GAP: Final = 2
"""White pixels between two panels."""

_MASKED: Final = 128
"""The shade of what a mask hides."""

_MAX_PATCHES: Final = 1 << 24


def grid_of(value: Value) -> Pixels:
    """The pictures of a value of kind ``images`` in rows, as torch's `make_grid` has them."""
    batch = colored(batch_of(only_array(value), value.info.get("layout")))
    per_row = value.info.get("per_row", 8)
    if not isinstance(per_row, int) or per_row < 1:
        raise ValueError(f"per_row must be a positive integer, not {per_row!r:.40}")
    count, high, wide, channels = batch.shape
    columns = min(count, per_row)
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, high, wide, channels), np.uint8)
    cells[:count] = batch
    return _tiled(cells, rows, columns)


def frames_of(value: Value) -> Pixels:
    """The frames of a value of kind ``video``, (t, height, width, 1 or 3).

    Several videos are shown side by side, as torch's `add_video` does it: as many as the next
    power of two, the missing ones black.
    """
    array, layout = only_array(value), value.info.get("layout")
    if not isinstance(layout, str) or len(layout) != array.ndim:
        raise ValueError(f"a video of shape {array.shape} is not laid out as {layout!r:.20}")
    if layout in ("TCHW", "THWC"):
        array, layout = array[None], f"N{layout}"
    if layout not in ("NTCHW", "NTHWC"):
        raise ValueError(f"{layout!r:.20} is no layout of a video")
    if 0 in array.shape or array.shape[layout.index("C")] not in (1, 3):
        raise ValueError(f"a video has 1 or 3 channels and a size, not {array.shape}")
    videos = shades_of(array).transpose([layout.index(axis) for axis in "NTHWC"])
    count = len(videos)
    padded = 1 << (count - 1).bit_length()
    rows = 1 << (count.bit_length() - 1) // 2
    cells = np.zeros((padded, *videos.shape[1:]), np.uint8)
    cells[:count] = videos
    frames = [_tiled(cells[:, t], rows, padded // rows) for t in range(videos.shape[1])]
    return np.stack(frames)


def panels_of(value: Value) -> Pixels:
    """Image, mask, masked image and prediction of a ``masked_image``, from left to right."""
    form = value.info.get("predicted")
    if len(value.arrays) != 2 + (form is not None):
        raise ValueError(f"a masked image has an image and a mask, not {len(value.arrays)} arrays")
    layout = value.info.get("layout")
    image = pixels_of(numpy_of(value.arrays[0]), layout)
    rows, columns, high, wide = _patches(value, image)
    mask = numpy_of(value.arrays[1]).reshape(-1) != 0
    if mask.size != rows * columns:
        raise ValueError(f"a mask of {mask.size} patches for an image of {rows} by {columns}")
    hidden = mask.reshape(rows, columns).repeat(high, axis=0).repeat(wide, axis=1)[:, :, None]
    solid = np.full_like(image, 255)
    panels = [image, hidden * solid, np.where(hidden, _opaque(image, _MASKED), image)]
    if form is not None:
        predicted = numpy_of(value.arrays[2])
        if form == "patches":
            shape = (rows, columns, high, wide, image.shape[2])
            patches = shades_of(predicted).reshape(shape).transpose(0, 2, 1, 3, 4)
            predicted = patches.reshape(image.shape)
        else:
            predicted = pixels_of(predicted, layout)
        if predicted.shape != image.shape:
            raise ValueError(f"a prediction of shape {predicted.shape}, not {image.shape}")
        panels.append(np.where(hidden, predicted, image))
    if image.shape[2] == 4:
        panels[1][:, :, 3] = 255
    gap = np.full((image.shape[0], _GAP, image.shape[2]), 255, np.uint8)
    parts = [part for panel in panels for part in (gap, panel)][1:]
    return np.concatenate(parts, axis=1, dtype=np.uint8)


def _patches(value: Value, image: Pixels) -> tuple[int, int, int, int]:
    """Rows and columns of patches, height and width of each."""
    match value.info.get("patch_size"):
        case [int() as high, int() as wide] if high > 0 and wide > 0:
            rows, columns = image.shape[0] // high, image.shape[1] // wide
            if (rows * high, columns * wide) == image.shape[:2] and rows * columns <= _MAX_PATCHES:
                return rows, columns, high, wide
        case _:
            pass
    size = value.info.get("patch_size")
    raise ValueError(f"an image of shape {image.shape} has no patches of {size!r:.40}")


def _opaque(image: Pixels, shade: int) -> Pixels:
    """A pixel of `shade` in as many channels as `image` has."""
    return np.array([shade, shade, shade, 255][: image.shape[2]], np.uint8)


def _tiled(cells: npt.NDArray[Any], rows: int, columns: int) -> Pixels:
    """(rows * columns, height, width, channels) as one picture, row by row."""
    _, high, wide, channels = cells.shape
    split = cells.reshape(rows, columns, high, wide, channels)
    return cast(
        "Pixels", split.transpose(0, 2, 1, 3, 4).reshape(rows * high, columns * wide, channels)
    )

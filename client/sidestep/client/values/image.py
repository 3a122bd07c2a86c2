"""Pictures: the pixels travel as they are; grids, boxes and PNG are made in the daemon."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, cast

from .arrays import as_array, dtype_name, is_tensor
from .base import EmitContext, InvalidValueError, Prepared, Value
from .media import as_pixels, clean_text, clean_texts, layout_of, shape_of, whole

_MAX_BOXES: Final = 4096
_MAX_SCALE: Final = 64.0
_MAX_PIXELS: Final = 1 << 26
"""Of a picture that is made larger."""

_MAX_SIDE: Final = 65_500
"""More pixels in a row no viewer takes."""


class Image(Value):
    """One picture; it is encoded as PNG in the daemon.

    Args:
        pixels: torch tensor or numpy array with 1, 3 or 4 channels. uint8 in [0, 255]; bool; or
            any float in [0, 1]: clipped, times 255, cut to an integer as
            `torch.utils.tensorboard` does; NaN reads as 0. bfloat16 travels as float32.
        layout: ``"CHW"``, ``"HWC"`` or ``"HW"``; None guesses from the shape, CHW first.
        caption: shown beside the picture, at most 64 KiB of UTF-8.
        boxes: (n, 4) corners ``xmin, ymin, xmax, ymax`` in pixels, n at most 4,096, any real
            dtype. TensorBoard shows them painted in, W&B as boxes of its own. Those with a
            corner that is not finite are left out.
        labels: one text for each box.
        rescale: TensorBoard's picture is this many times as wide and high, from more than 0
            to 64; W&B has the pixels as they are.

    Raises:
        InvalidValueError: when emitted, for another dtype, rank or number of channels, boxes that
            are not (n, 4), more or fewer labels than boxes.
    """

    kind = "image"

    def __init__(
        self,
        pixels: Any,
        *,
        layout: str | None = None,
        caption: str | None = None,
        boxes: Any = None,
        labels: Sequence[str] | None = None,
        rescale: float = 1,
    ) -> None:
        self._pixels = pixels
        self._layout = layout
        self._caption = caption
        self._boxes = boxes
        self._labels = labels
        self._rescale = rescale

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        pixels = as_pixels(self._pixels, "Image")
        shape = shape_of(pixels)
        layout = layout_of(shape, self._layout, ("CHW", "HWC", "HW"), "Image")
        info: dict[str, object] = {"layout": layout}
        if self._caption is not None:
            info["caption"] = clean_text(self._caption, "caption")
        if self._rescale != 1:
            sides = (shape[layout.index("H")], shape[layout.index("W")])
            info["rescale"] = _scale(self._rescale, sides)
        if self._boxes is None:
            if self._labels is not None:
                raise InvalidValueError("Image with labels but no boxes: labels belong to boxes")
            return Prepared(self.kind, info, (pixels,))
        boxes = _as_boxes(self._boxes)
        if self._labels is not None:
            info["labels"] = clean_texts(self._labels, int(boxes.shape[0]), "labels", "boxes")
        return Prepared(self.kind, info, (pixels, boxes))


class Images(Value):
    """Several pictures of one size: a grid in TensorBoard, a list of pictures in W&B.

    Args:
        pixels: torch tensor or numpy array of N pictures, or a sequence of N tensors or arrays of
            one shape, one dtype and one device, which are stacked there. Dtypes, ranges and
            channels as those of `Image`.
        layout: ``"NCHW"``, ``"NHWC"`` or ``"NHW"``; None guesses from the shape, NCHW first.
        captions: one text for each picture, shown by W&B; in TensorBoard's description.
        per_row: pictures in a row of the grid, at least 1.

    Raises:
        InvalidValueError: when emitted, for another dtype, rank or number of channels, pictures of
            different shapes, more or fewer captions than pictures.
    """

    kind = "images"

    def __init__(
        self,
        pixels: Any,
        *,
        layout: str | None = None,
        captions: Sequence[str] | None = None,
        per_row: int = 8,
    ) -> None:
        self._pixels = pixels
        self._layout = layout
        self._captions = captions
        self._per_row = per_row

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        per_row = whole(self._per_row, "Images per_row", 1, _MAX_SIDE)
        pixels = as_pixels(_stacked(self._pixels), "Images")
        shape = shape_of(pixels)
        layout = layout_of(shape, self._layout, ("NCHW", "NHWC", "NHW"), "Images")
        rows = -(-shape[0] // per_row)
        high = rows * shape[layout.index("H")]
        wide = min(shape[0], per_row) * shape[layout.index("W")]
        if max(high, wide) > _MAX_SIDE:
            raise InvalidValueError(
                f"Images of shape {shape}, {per_row} in a row, make a grid of {wide} by {high} "
                f"pixels: at most {_MAX_SIDE} either way; emit fewer, or set per_row"
            )
        info: dict[str, object] = {"layout": layout, "per_row": per_row}
        if self._captions is not None:
            info["captions"] = clean_texts(self._captions, shape[0], "captions", "images")
        return Prepared(self.kind, info, (pixels,))


def _as_boxes(value: Any) -> Any:
    boxes = as_array(value, "Image boxes")
    shape = shape_of(boxes)
    if shape == (0,):  # an empty list
        boxes = boxes.reshape(0, 4)
    elif len(shape) != 2 or shape[1] != 4:
        raise InvalidValueError(
            f"Image boxes of shape {shape}: expected (n, 4), each xmin, ymin, xmax, ymax in pixels"
        )
    if shape[0] > _MAX_BOXES:
        raise InvalidValueError(f"Image with {shape[0]} boxes: at most {_MAX_BOXES}")
    if dtype_name(boxes) == "bool":
        raise InvalidValueError("Image boxes of bool: expected numbers, in pixels")
    return boxes


def _scale(rescale: object, sides: tuple[int, int]) -> float:
    if not isinstance(rescale, (int, float)) or not 0 < rescale <= _MAX_SCALE:
        raise InvalidValueError(f"Image rescale must be a number over 0, at most {_MAX_SCALE:g}")
    small, large = (math.floor(side * rescale) for side in (min(sides), max(sides)))
    if small < 1 or small * large > _MAX_PIXELS:
        raise InvalidValueError(
            f"Image of {sides[0]} by {sides[1]} pixels cannot be rescaled by {rescale}: expected "
            f"a pixel or more either way, and at most {_MAX_PIXELS:,} in all"
        )
    return float(rescale)


def _stacked(value: Any) -> Any:
    """A sequence of pictures as one array, stacked where they are."""
    if not isinstance(value, (list, tuple)) or not value:
        return value
    pictures = cast("Sequence[Any]", value)
    if not all(is_tensor(picture) for picture in pictures):
        return _stacked_by_numpy(pictures)
    first = pictures[0]
    kind = (first.shape, first.dtype, first.device)
    for picture in pictures:
        if (picture.shape, picture.dtype, picture.device) != kind:
            raise InvalidValueError(
                f"Images of {shape_of(first)} {first.dtype} on {first.device} and of "
                f"{shape_of(picture)} {picture.dtype} on {picture.device}: expected one shape, "
                "dtype and device"
            )
    import torch

    return torch.stack([picture.detach() for picture in pictures])


def _stacked_by_numpy(pictures: Sequence[Any]) -> Any:
    arrays = [as_array(picture, "each of Images") for picture in pictures]
    kinds = {(shape_of(array), dtype_name(array)) for array in arrays}
    if len(kinds) > 1 or any(is_tensor(array) for array in arrays):
        raise InvalidValueError(
            f"Images of {len(kinds)} different shapes or dtypes, or tensors beside arrays: "
            "expected one shape and dtype"
        )
    import numpy as np

    return np.stack(arrays)

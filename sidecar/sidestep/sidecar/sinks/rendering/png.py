"""Pixels to PNG, with boxes painted in where they are asked for."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np

from sidestep.proto import Value

from .arrays import numpy_of
from .pixels import Pixels

_MAX_BOXES: Final = 4096
_MAX_LABEL: Final = 200
"""Characters of a label that are painted."""

_FAR: Final = 100_000.0
"""Corners are at most so far away: the painter counts in 32 bits."""

_MAX_PIXELS: Final = 1 << 26
"""Of a picture that is made larger."""

_THICKNESS: Final = 2

Box = tuple[float, float, float, float, str]
"""Left, top, right, bottom in pixels, and a label, which may be empty."""


def png_of(pixels: Pixels, boxes: Sequence[Box] = (), rescale: float = 1.0) -> bytes:
    """A picture of shape (height, width, 1, 3 or 4), its boxes painted before it is rescaled."""
    from PIL import Image

    grey = pixels.shape[2] == 1
    picture: Any = Image.fromarray(pixels[:, :, 0] if grey else pixels)
    for box in boxes:
        _paint(picture, box)
    if rescale != 1:
        size = (int(picture.width * rescale), int(picture.height * rescale))
        if not (0 < size[0] * size[1] <= _MAX_PIXELS and min(size) > 0):
            raise ValueError(f"a picture of {size[0]} by {size[1]} pixels")
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    png = io.BytesIO()
    picture.save(png, format="PNG")
    return png.getvalue()


def boxes_of(value: Value) -> list[Box]:
    """The boxes of a value of kind ``image``, those with a corner that is not finite left out."""
    if len(value.arrays) < 2:
        return []
    corners = numpy_of(value.arrays[1])
    if corners.ndim != 2 or corners.shape[1] != 4 or len(corners) > _MAX_BOXES:
        raise ValueError(f"boxes of shape {corners.shape}, not (n, 4)")
    labels = value.info.get("labels")
    names: Sequence[object] = [""] * len(corners)
    if isinstance(labels, list):
        names = cast("list[object]", labels)
    if len(names) != len(corners):
        raise ValueError(f"{len(names)} labels for {len(corners)} boxes")
    boxes: list[Box] = []
    for row, name in zip(corners.astype(np.float64).tolist(), names, strict=True):
        if all(map(math.isfinite, row)):
            left, top, right, bottom = (min(max(edge, -_FAR), _FAR) for edge in row)
            boxes.append((left, top, right, bottom, str(name)))
    return boxes


def rescale_of(value: Value) -> float:
    """How much larger the picture is to be."""
    rescale = value.info.get("rescale", 1.0)
    if not isinstance(rescale, (int, float)) or not 0 < rescale < math.inf:
        raise ValueError(f"rescale must be a positive number, not {rescale!r:.40}")
    return rescale


def _paint(picture: Any, box: Box) -> None:
    """As `torch.utils.tensorboard` paints it: a red line, and the label below on red ground."""
    from PIL import ImageDraw, ImageFont

    left, top, right, bottom, label = box
    draw = ImageDraw.Draw(picture)
    corners = [(left, top), (left, bottom), (right, bottom), (right, top), (left, top)]
    draw.line(corners, width=_THICKNESS, fill="Red")
    if not label:
        return
    shown = label[:_MAX_LABEL]
    font: Any = ImageFont.load_default()
    x0, y0, x1, y1 = font.getbbox(shown)
    wide, high = x1 - x0, y1 - y0
    margin = math.ceil(0.05 * high)
    above = bottom - high - 2 * margin
    draw.rectangle([(left, above), (left + wide, bottom)], fill="Red")
    draw.text((left + margin, bottom - high - margin), shown, fill="black", font=font)

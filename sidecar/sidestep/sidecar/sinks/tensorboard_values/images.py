"""Pictures, still and moving, as TensorBoard shows them."""

from __future__ import annotations

from typing import Any

from sidestep.proto import Value

from ..rendering.arrays import numpy_of
from ..rendering.gif import gif_of
from ..rendering.grids import grid_of, panels_of
from ..rendering.pixels import Pixels, colored, pixels_of
from ..rendering.png import Box, boxes_of, png_of, rescale_of


def image(value: Value, event: Any) -> None:
    """One picture, its boxes painted in."""
    if len(value.arrays) not in (1, 2):
        raise ValueError(f"an image has pixels, and may have boxes, not {len(value.arrays)} arrays")
    pixels = pixels_of(numpy_of(value.arrays[0]), value.info.get("layout"))
    _show(value, event, pixels, boxes_of(value), rescale_of(value))


def images(value: Value, event: Any) -> None:
    """Several pictures, in a grid."""
    _show(value, event, grid_of(value))


def masked_image(value: Value, event: Any) -> None:
    """Image, mask, masked image and prediction, side by side."""
    _show(value, event, panels_of(value))


def video(value: Value, event: Any) -> None:
    """A moving picture, as GIF."""
    gif = gif_of(value)
    _add(value, event, (gif.height, gif.width, gif.channels), gif.data)


def _show(
    value: Value, event: Any, pixels: Pixels, boxes: list[Box] | None = None, rescale: float = 1.0
) -> None:
    pixels = colored(pixels)
    # It says the size before it was rescaled, as torch does.
    _add(value, event, pixels.shape, png_of(pixels, boxes or (), rescale))


def _add(value: Value, event: Any, shape: tuple[int, ...], encoded: bytes) -> None:
    shown = event.summary.value.add(tag=value.tag)
    shown.image.height, shown.image.width, shown.image.colorspace = shape
    shown.image.encoded_image_string = encoded
    if description := description_of(value):
        shown.metadata.summary_description = description


def description_of(value: Value) -> str:
    """The caption, or the captions as a list, in Markdown."""
    caption, captions = value.info.get("caption"), value.info.get("captions")
    if isinstance(caption, str):
        return caption
    if isinstance(captions, list):
        return "\n".join(f"{number}. {text}" for number, text in enumerate(captions, 1))
    return ""

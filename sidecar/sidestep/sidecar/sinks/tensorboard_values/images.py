"""Pictures as TensorBoard shows them."""

from __future__ import annotations

import io
from typing import Any

from sidestep.proto import Value

from ..rendering.arrays import only_array
from ..rendering.pixels import pixels_of


def image(value: Value, event: Any) -> None:
    """One picture, as PNG."""
    from PIL import Image

    pixels = pixels_of(only_array(value), value.info.get("layout"))
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    shown = event.summary.value.add(tag=value.tag)
    shown.image.height, shown.image.width, shown.image.colorspace = pixels.shape
    shown.image.encoded_image_string = png.getvalue()
    caption = value.info.get("caption")
    if isinstance(caption, str) and caption:
        shown.metadata.summary_description = caption

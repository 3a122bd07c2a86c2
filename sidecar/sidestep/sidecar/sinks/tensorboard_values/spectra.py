"""Spectra as TensorBoard shows them: pictures."""

from __future__ import annotations

from typing import Any

from sidestep.proto import Value

from ..rendering.png import png_of
from ..rendering.spectra import spectrum_pixels


def spectrum(value: Value, event: Any) -> None:
    """Eigenvalues on logarithmic axes, as PNG."""
    pixels = spectrum_pixels(value)
    shown = event.summary.value.add(tag=value.tag)
    shown.image.height, shown.image.width, shown.image.colorspace = pixels.shape
    shown.image.encoded_image_string = png_of(pixels)

"""Pictures: the pixels travel as they are and become PNG in the daemon."""

from __future__ import annotations

from typing import Any

from .arrays import as_array, dtype_name
from .base import EmitContext, InvalidValueError, Prepared, Value


class Image(Value):
    """One picture; it is encoded as PNG in the daemon.

    Args:
        pixels: torch tensor or numpy array with 1, 3 or 4 channels. uint8 in [0, 255], or any
            float in [0, 1] (clipped; NaN reads as 0).
        layout: ``"CHW"``, ``"HWC"`` or ``"HW"``; None guesses from the shape, CHW first.
        caption: shown beside the picture.

    Raises:
        InvalidValueError: when emitted, for another dtype, rank or number of channels.
    """

    kind = "image"

    def __init__(
        self, pixels: Any, *, layout: str | None = None, caption: str | None = None
    ) -> None:
        self._pixels = pixels
        self._layout = layout
        self._caption = caption

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        pixels = as_array(self._pixels, "Image")
        shape = tuple(int(n) for n in pixels.shape)
        dtype = dtype_name(pixels)
        if dtype != "uint8" and not dtype.startswith(("float", "bfloat")):
            raise InvalidValueError(
                f"Image of {dtype}: expected uint8 in [0, 255] or floats in [0, 1]"
            )
        info: dict[str, object] = {"layout": _image_layout(shape, self._layout)}
        if self._caption is not None:
            info["caption"] = str(self._caption)
        return Prepared(self.kind, info, (pixels,))


def _image_layout(shape: tuple[int, ...], layout: str | None) -> str:
    channels = (1, 3, 4)
    if layout is None:
        if len(shape) == 2:
            layout = "HW"
        elif len(shape) == 3:
            layout = "CHW" if shape[0] in channels else "HWC"
    fits = {
        "HW": len(shape) == 2,
        "CHW": len(shape) == 3 and shape[0] in channels,
        "HWC": len(shape) == 3 and shape[-1] in channels,
    }
    if layout is None or not fits.get(layout, False) or 0 in shape:
        raise InvalidValueError(
            f"Image of shape {shape} as {layout or 'CHW, HWC or HW'}: expected a non-empty "
            "(C, H, W), (H, W, C) or (H, W) with 1, 3 or 4 channels"
        )
    return layout

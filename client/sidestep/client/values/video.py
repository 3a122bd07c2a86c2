"""Moving pictures: the frames travel as they are and become a GIF in the daemon."""

from __future__ import annotations

from typing import Any, Final

from .base import EmitContext, InvalidValueError, Prepared, Value
from .media import as_pixels, clean_text, layout_of, shape_of

_LAYOUTS: Final = ("NTCHW", "NTHWC", "TCHW", "THWC")
_MAX_FPS: Final = 1000
_MAX_SIDE: Final = 65_535  # a GIF's


class Video(Value):
    """A moving picture; it becomes a GIF in the daemon.

    Args:
        pixels: T frames, or N such videos, which are shown beside each other in one; 1 or 3
            channels. Dtypes and ranges as those of `Image`. At most 64 MiB, as every value: 100
            frames of 448 x 448 in uint8.
        fps: frames a second, over 0, at most 1,000. A GIF counts hundredths of a second and viewers
            show at most 50 frames a second: more are shown at 50.
        layout: ``"NTCHW"``, ``"NTHWC"``, ``"TCHW"`` or ``"THWC"``; None guesses from the shape.
        caption: shown beside it, at most 64 KiB of UTF-8.

    Raises:
        InvalidValueError: when emitted, for another dtype, rank or number of channels.
    """

    kind = "video"

    def __init__(
        self,
        pixels: Any,
        *,
        fps: float = 4,
        layout: str | None = None,
        caption: str | None = None,
    ) -> None:
        self._pixels = pixels
        self._fps = fps
        self._layout = layout
        self._caption = caption

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        pixels = as_pixels(self._pixels, "Video")
        shape = shape_of(pixels)
        layout = layout_of(shape, self._layout, _LAYOUTS, "Video", channels=(1, 3))
        count = shape[0] if layout[0] == "N" else 1
        rows, columns = tiles(count)
        high, wide = rows * shape[layout.index("H")], columns * shape[layout.index("W")]
        if max(high, wide) > _MAX_SIDE:
            raise InvalidValueError(
                f"Video of shape {shape} makes frames of {wide} by {high} pixels: at most "
                f"{_MAX_SIDE} either way"
            )
        fps: Any = self._fps
        if not isinstance(fps, (int, float)) or not 0 < fps <= _MAX_FPS:
            raise InvalidValueError(f"Video fps must be a number over 0, at most {_MAX_FPS}")
        info: dict[str, object] = {"layout": layout, "fps": float(fps)}
        if self._caption is not None:
            info["caption"] = clean_text(self._caption, "caption")
        return Prepared(self.kind, info, (pixels,))


def tiles(count: int) -> tuple[int, int]:
    """Rows and columns in which `count` videos are shown: powers of two, as torch has them."""
    columns = 1 << (count - 1).bit_length()
    rows = 1 << ((count.bit_length() - 1) // 2)
    return rows, columns // rows

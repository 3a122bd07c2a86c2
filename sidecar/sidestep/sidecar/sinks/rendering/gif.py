"""Frames to an animated GIF, by Pillow."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sidestep.proto import Value

from .grids import frames_of
from .pixels import Pixels

_COLORS: Final = 256
"""Of one frame; one with more is shown with the ones that fit it best."""

_SHORTEST_MS: Final = 20
"""What is shorter, viewers show for 100 ms."""

_MAX_FPS: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Gif:
    """A GIF, and what it says of itself."""

    data: bytes
    height: int
    width: int
    channels: int


def gif_of(value: Value) -> Gif:
    """The moving picture of a value of kind ``video``."""
    fps = value.info.get("fps")
    if not isinstance(fps, (int, float)) or not 0 < fps <= _MAX_FPS:
        raise ValueError(f"fps must be a number over 0, at most {_MAX_FPS:g}, not {fps!r:.40}")
    frames = frames_of(value)
    pictures = [_picture(frame) for frame in frames]
    file = io.BytesIO()
    pictures[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=_durations_ms(len(pictures), fps),
        loop=0,
        optimize=False,
    )
    return Gif(file.getvalue(), *frames.shape[1:])


def _durations_ms(count: int, fps: float) -> list[int]:
    """How long each frame is shown: in hundredths of a second, and right in the long run."""
    each_ms = max(1000 / fps, _SHORTEST_MS)
    ends = [round((i + 1) * each_ms / 10) * 10 for i in range(count)]
    return [min(end - start, 655_350) for start, end in zip([0, *ends], ends, strict=False)]


def _picture(frame: Pixels) -> Any:
    """A picture with a palette: exact while the frame has no more colors than that."""
    from PIL import Image

    if frame.shape[2] == 1:
        return Image.fromarray(frame[:, :, 0])
    packed = frame.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colors = np.unique(packed)
    if len(colors) > _COLORS:
        return Image.fromarray(frame).quantize(_COLORS)
    picture = Image.fromarray(np.searchsorted(colors, packed).astype(np.uint8))
    channels = [(colors >> shift & 255).astype(np.uint8) for shift in (16, 8, 0)]
    picture.putpalette(np.stack(channels, axis=1).tobytes())
    return picture

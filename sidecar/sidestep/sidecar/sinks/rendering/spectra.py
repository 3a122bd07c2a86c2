"""Draws a spectrum: eigenvalues over their index, both axes logarithmic."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sidestep.proto import Value

from .arrays import only_array

_SIZE: Final = (640, 420)
_LEFT, _TOP, _RIGHT, _BOTTOM = 74, 38, 622, 366
_DECADES: Final = 12
"""What is further below the largest eigenvalue is rounding, and would flatten the rest."""

_MAX_EIGENVALUES: Final = 1 << 16
_MAX_TITLE: Final = 60
_INK, _GREY, _FAINT, _CURVE = (34, 34, 34), (204, 204, 204), (236, 236, 236), (23, 104, 180)


def spectrum_pixels(value: Value) -> npt.NDArray[np.uint8]:
    """A picture of a value of kind ``spectrum``, (height, width, 3).

    The value has one array, the eigenvalues, largest first, and in `info` what is said above the
    picture: ``n`` rows, ``d`` dimensions, and any of ``rank``, ``pr``, ``alpha``.

    Raises:
        ValueError: it is not made so.
    """
    from PIL import Image, ImageDraw

    eigenvalues = _eigenvalues(value)
    top = math.ceil(math.log10(eigenvalues[0]) - 1e-9)
    low = math.floor(math.log10(eigenvalues[-1]) + 1e-9)
    low = max(min(low, top - 1), top - _DECADES)
    last = max(1.0, math.log10(len(eigenvalues)))
    picture = Image.new("RGB", _SIZE, "white")
    draw: Any = ImageDraw.Draw(picture)
    _axis_x(draw, last)
    _axis_y(draw, low, top)
    draw.rectangle((_LEFT, _TOP, _RIGHT, _BOTTOM), outline=_INK)
    _curve(draw, eigenvalues, low, top, last)
    _words(picture, draw, value)
    return np.asarray(picture)


def _eigenvalues(value: Value) -> npt.NDArray[np.float64]:
    found = only_array(value).astype(np.float64)
    if found.ndim != 1 or not 0 < len(found) <= _MAX_EIGENVALUES:
        raise ValueError(f"a spectrum is a row of eigenvalues, not an array of shape {found.shape}")
    if not (np.isfinite(found).all() and (found > 0).all() and (np.diff(found) <= 0).all()):
        raise ValueError("a spectrum has positive eigenvalues, the largest first")
    return found


def _axis_x(draw: Any, last: float) -> None:
    for decade in range(math.floor(last) + 1):
        for digit in range(1, 10):
            at = decade + math.log10(digit)
            if at > last + 1e-9:
                break
            x = _LEFT + at / last * (_RIGHT - _LEFT)
            draw.line((x, _TOP, x, _BOTTOM), fill=_GREY if digit == 1 else _FAINT)
            # A second label where a decade is wide.
            if digit == 1 or (digit in (2, 5) and last < 2.5):
                draw.line((x, _BOTTOM, x, _BOTTOM + 5), fill=_INK)
                _text(draw, (x, _BOTTOM + 8), str(digit * 10**decade), "ma")
    _text(draw, ((_LEFT + _RIGHT) / 2, _SIZE[1] - 8), "index j, largest eigenvalue first", "ms")


def _axis_y(draw: Any, low: int, top: int) -> None:
    step = max(1, math.ceil((top - low) / 7))
    for decade in range(low, top + 1):
        y = _BOTTOM - (decade - low) / (top - low) * (_BOTTOM - _TOP)
        labelled = (top - decade) % step == 0
        draw.line((_LEFT, y, _RIGHT, y), fill=_GREY if labelled else _FAINT)
        if labelled:
            draw.line((_LEFT - 5, y, _LEFT, y), fill=_INK)
            _text(draw, (_LEFT - 9, y), f"1e{decade}", "rm")


def _curve(
    draw: Any, eigenvalues: npt.NDArray[np.float64], low: int, top: int, last: float
) -> None:
    j = np.log10(np.arange(1, len(eigenvalues) + 1))
    height = (np.log10(eigenvalues) - low) / (top - low)
    seen = height >= 0
    xs = (_LEFT + j / last * (_RIGHT - _LEFT))[seen].tolist()
    ys = (_BOTTOM - height * (_BOTTOM - _TOP))[seen].tolist()
    points = list(zip(xs, ys, strict=True))
    draw.line(points, fill=_CURVE, width=2)
    for x, y in points[:100]:  # further right they are nearer to each other than a pixel
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=_CURVE)


def _words(picture: Any, draw: Any, value: Value) -> None:
    from PIL import Image, ImageDraw

    title = value.tag.removesuffix("_spectrum")[-_MAX_TITLE:]
    _text(draw, (_LEFT, 14), title, "lm")
    said = [f"{name} {_number(value.info[name])}" for name in _SAID if name in value.info]
    _text(draw, (_RIGHT, 29), "   ".join(said), "rm", size=11)
    across = Image.new("RGB", (_BOTTOM - _TOP, 18), "white")
    _text(ImageDraw.Draw(across), (across.width / 2, 9), "eigenvalue of the covariance", "mm")
    picture.paste(across.rotate(90, expand=True), (4, _TOP))


_SAID: Final = ("n", "d", "rank", "pr", "alpha")


def _number(number: object) -> str:
    return f"{number:.4g}" if isinstance(number, float) else f"{number!s:.20}"


def _text(draw: Any, at: tuple[float, float], words: str, anchor: str, size: int = 13) -> None:
    from PIL import ImageFont

    draw.text(at, words, fill=_INK, font=ImageFont.load_default(size), anchor=anchor)

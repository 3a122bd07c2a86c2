"""What pictures, sounds and videos share: layouts, dtypes, captions, all told from shapes."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from .arrays import as_array, dtype_name
from .base import InvalidValueError

CHANNELS: Final = (1, 3, 4)
"""Grey, RGB, RGB with opacity."""

MAX_CAPTION_BYTES: Final = 64 << 10
"""Of one caption or label, in UTF-8."""

MAX_CAPTIONS: Final = 4096
"""Captions or labels of one value."""


def shape_of(array: Any) -> tuple[int, ...]:
    """The shape of a tensor or array, as ints."""
    return tuple(map(int, array.shape))


def as_pixels(value: Any, what: str) -> Any:
    """`value` as a tensor or array whose dtype can be shown.

    Raises:
        InvalidValueError: it is neither uint8, bool nor a float.
    """
    pixels = as_array(value, what)
    dtype = dtype_name(pixels)
    if dtype not in ("uint8", "bool") and not dtype.startswith(("float", "bfloat")):
        raise InvalidValueError(
            f"{what} of {dtype}: expected uint8 in [0, 255], bool, or floats in [0, 1]"
        )
    return pixels


def layout_of(
    shape: tuple[int, ...],
    layout: str | None,
    known: Sequence[str],
    what: str,
    channels: Sequence[int] = CHANNELS,
) -> str:
    """The layout of pixels: the one that is asked for, or the first of `known` that fits.

    Args:
        shape: of the pixels.
        layout: what the user says; None to guess.
        known: the layouts that `what` may have, from letters of N, T, C, H, W.
        what: the value's name, for the message.
        channels: how many of them there may be.

    Raises:
        InvalidValueError: there is none, or not the one that is asked for.
    """
    found = _fitting(shape, layout, tuple(known), tuple(channels))
    if found:
        return found
    named = "" if layout is None else f" as {layout!s:.20}"
    raise InvalidValueError(
        f"{what} of shape {shape}{named}: expected a non-empty {_listed(known)} with "
        f"{_listed(channels)} channels (C)"
    )


@lru_cache(maxsize=256)
def _fitting(
    shape: tuple[int, ...], layout: str | None, known: tuple[str, ...], channels: tuple[int, ...]
) -> str:
    for name in known if layout is None else [name for name in known if name == layout]:
        c = name.find("C")
        if len(shape) == len(name) and 0 not in shape and (c < 0 or shape[c] in channels):
            return name
    return ""


def _listed(things: Sequence[object]) -> str:
    *some, last = things
    return f"{', '.join(map(str, some))} or {last}"


def clean_text(text: object, what: str) -> str:
    """`text` as UTF-8 can say it.

    Raises:
        InvalidValueError: it is no str, or too long.
    """
    if not isinstance(text, str):
        raise InvalidValueError(f"{what} must be a str, not {type(text).__name__}")
    data = text.encode("utf-8", "replace")
    if len(data) > MAX_CAPTION_BYTES:
        raise InvalidValueError(f"{what} of {len(data)} bytes: at most {MAX_CAPTION_BYTES}")
    return data.decode()


def clean_texts(texts: object, count: int, what: str, each: str) -> list[str]:
    """A text for each of `count` things.

    Raises:
        InvalidValueError: there are more or fewer, or one of them is no text.
    """
    if isinstance(texts, (str, bytes, Mapping)) or not isinstance(texts, Iterable):
        raise InvalidValueError(f"{what} must be a sequence of str, not {type(texts).__name__}")
    cleaned = [clean_text(text, f"each of {what}") for text in texts]
    if len(cleaned) != count:
        raise InvalidValueError(f"{len(cleaned)} {what} for {count} {each}: expected one for each")
    if count > MAX_CAPTIONS:
        raise InvalidValueError(f"{count} {what}: at most {MAX_CAPTIONS}")
    if sum(len(text) for text in cleaned) > 4 * MAX_CAPTION_BYTES:
        raise InvalidValueError(f"{what} of more than {4 * MAX_CAPTION_BYTES} characters in all")
    return cleaned


def whole(number: Any, what: str, least: int, most: int) -> int:
    """`number` as an int.

    Raises:
        InvalidValueError: it is no integer from `least` to `most`.
    """
    try:
        found = operator.index(number)
    except TypeError:
        found = least - 1
    if not least <= found <= most:
        raise InvalidValueError(f"{what} must be an int from {least:,} to {most:,}")
    return found

"""Reads a value of kind ``moments``, version 2, as the client writes it.

``info`` is ``{"v": 2, "d", "images", "tokens", "paired", "due", "shares", "extras"}``: D, the
images and tokens an image that were used (1 token for (B, D)), what follows, and the names of the
optional statistics. All arrays are float32; sums run over the rows without a non-finite element::

    scalars (16 + extras,)   in the order of `SCALARS`, then the extras; NaN is "there is none"
    mean (D,)  m2 (D,)       of the rows
    unit_sum (D,)  unit_m2 (D,)    of the rows over their norms
    target_mean (D,)         only if paired
    gram (D, D)              only if due, and then also
    image_mean (D,)  image_gram (D, D)    of one token an image (left out when tokens is 1)
    position_means (tokens, D)            only if shares
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

import numpy as np

from sidestep.proto import RemoteProtocolError, Value
from sidestep.proto.records import Array

from .additive import (
    Average,
    Floats,
    ImageTokens,
    Moments,
    Spread,
    Target,
    TwoWay,
    image_tokens,
    image_traces,
)

SCALARS: Final = (
    "n",
    "nonfinite",
    "norm_mean",
    "norm_m2",
    "n_unit",
    "n_images",
    "image_trace",  # of the centred Gram matrix of one token an image
    "image_square",  # its squared Frobenius norm
    "ss_image",
    "ss_position",
    "ss_total",
    "cosines",
    "squares",
    "target_m2",
    "n_pairs",
    "loss",
)
"""What the first array holds before the extras."""

_COUNTS: Final = ("n", "nonfinite", "n_unit", "n_images")
_VERSION: Final = 2
_MAX_COUNT: Final = 1 << 40
"""More rows nobody has; what is far beyond would overflow later."""


def decode(value: Value) -> Moments:
    """The moments that `value` holds.

    Raises:
        RemoteProtocolError: it is not made as said above.
    """
    info = value.info
    if info.get("v") != _VERSION:
        raise RemoteProtocolError("malformed", f"moments of version {info.get('v')!r:.20}, not 2")
    d, tokens = _positive(value, "d"), _positive(value, "tokens")
    paired, due, shares = (_flag(value, name) for name in ("paired", "due", "shares"))
    extras = _names(info.get("extras", []))
    shapes: list[tuple[int, ...]] = [(len(SCALARS) + len(extras),), (d,), (d,), (d,), (d,)]
    shapes += [(d,)] * paired
    if due:
        shapes += [(d, d)] + [(d,), (d, d)] * (tokens > 1) + [(tokens, d)] * shares
    found = [array.shape for array in value.arrays]
    if found != shapes or any(array.dtype != "float32" for array in value.arrays):
        raise RemoteProtocolError("malformed", f"moments with arrays {found!s:.200}, not {shapes}")
    arrays = (_float64(array) for array in value.arrays)
    numbers = cast("list[float]", next(arrays).tolist())
    scalars = dict(zip((*SCALARS, *extras), numbers, strict=True))
    for name in _COUNTS:
        _count(scalars[name], name)
    return _moments(scalars, arrays, d, tokens, paired, due, shares, extras)


def _moments(
    scalars: dict[str, float],
    arrays: Iterator[Floats],
    d: int,
    tokens: int,
    paired: bool,
    due: bool,
    shares: bool,
    extras: list[str],
) -> Moments:
    n, n_unit, n_images = (int(scalars[name]) for name in ("n", "n_unit", "n_images"))
    rows = _spread(n, next(arrays), next(arrays))
    unit = _spread(n_unit, next(arrays) / max(n_unit, 1), next(arrays))
    target = _target(scalars, next(arrays)) if paired else None
    gram = next(arrays) if due else None
    images = _images(scalars, n_images, rows, gram, arrays, due, tokens)
    position_means = next(arrays) if due and shares else None
    averages = {
        name: Average(float(n), scalars[name])
        for name in ("loss", *extras)
        if np.isfinite(scalars[name])
    }
    return Moments(
        d,
        rows,
        scalars["nonfinite"],
        _spread(n, np.asarray(scalars["norm_mean"]), np.asarray(scalars["norm_m2"])),
        unit,
        images,
        gram if n else None,
        _two_way(scalars, rows, tokens, position_means),
        target,
        averages,
    )


def _images(
    scalars: dict[str, float],
    n_images: int,
    rows: Spread,
    gram: Floats | None,
    arrays: Iterator[Floats],
    due: bool,
    tokens: int,
) -> ImageTokens:
    if due:
        mean, own = (rows.mean, gram) if tokens == 1 else (next(arrays), next(arrays))
        if own is not None and n_images:
            return image_tokens(n_images, mean, own)
    return image_traces(n_images, scalars["image_trace"], scalars["image_square"])


def _two_way(
    scalars: dict[str, float], rows: Spread, tokens: int, position_means: Floats | None
) -> TwoWay | None:
    by_image, by_position = scalars["ss_image"], scalars["ss_position"]
    total = scalars["ss_total"]
    if tokens < 2 or not rows.n or not np.isfinite([by_image, by_position, total]).all():
        return None
    images = rows.n / tokens
    return TwoWay(images, tokens, rows.mean, by_image, by_position, total, position_means)


def _target(scalars: dict[str, float], mean: Floats) -> Target:
    n = _count(scalars["n_pairs"], "n_pairs")
    if not n:
        return Target(0, 0.0, 0.0, np.zeros_like(mean), 0.0)
    return Target(n, scalars["cosines"], scalars["squares"], mean, scalars["target_m2"])


def _spread(n: int, mean: Floats, m2: Floats) -> Spread:
    # What is said of no rows is not a number.
    return Spread(n, mean, m2) if n else Spread(0, np.zeros_like(mean), np.zeros_like(m2))


def _float64(array: Array) -> Floats:
    data = np.frombuffer(array.data, dtype="<f4").reshape(array.shape)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return data.astype(np.float64)


def _count(number: float, name: str) -> int:
    if not 0 <= number <= _MAX_COUNT or number != int(number):
        raise RemoteProtocolError("malformed", f"moments of {name} = {number}")
    return int(number)


def _positive(value: Value, name: str) -> int:
    number = value.info.get(name)
    if type(number) is not int or number < 1:
        raise RemoteProtocolError("malformed", f"moments with {name} = {number!r:.40}")
    return number


def _flag(value: Value, name: str) -> bool:
    flag = value.info.get(name)
    if type(flag) is not bool:
        raise RemoteProtocolError("malformed", f"moments with {name} = {flag!r:.40}")
    return flag


def _names(names: object) -> list[str]:
    if isinstance(names, list):
        found = [name for name in cast("list[object]", names) if isinstance(name, str) and name]
        if len(found) == len(cast("list[object]", names)) == len(set(found)):
            return found
    raise RemoteProtocolError("malformed", f"moments with extras = {names!r:.80}")

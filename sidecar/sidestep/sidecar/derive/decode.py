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
    between (D', D')  within (D', D')     only with the extra "lidar"

"shares" is whether there are position means when due. The number under "lidar" is that of its
images; ``info`` then also has "views".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, cast

import numpy as np

from sidestep.proto import RemoteProtocolError, Value
from sidestep.proto.records import Array

from .additive import (
    Average,
    Floats,
    ImageTokens,
    Moments,
    Scatter,
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

LIDAR: Final = "lidar"
"""An extra whose number is a count, and which has arrays of its own."""

_COUNTS: Final = ("n", "nonfinite", "n_unit", "n_images")
_VERSION: Final = 2
_MAX_COUNT: Final = 1 << 40
"""More rows nobody has; what is far beyond would overflow later."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """What `info` says of the arrays."""

    d: int
    images: int
    tokens: int
    paired: bool
    due: bool
    shares: bool
    views: int
    extras: tuple[str, ...]

    def shapes(self, last: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Of the arrays, when `last` is that of the last one: it alone says what D' is."""
        d, scatter = self.d, max((1, *last[:1]))
        shapes: list[tuple[int, ...]] = [(len(SCALARS) + len(self.extras),)]
        shapes += [(d,)] * (4 + self.paired)
        if self.due:
            shapes += [(d, d)]
            shapes += [(d,), (d, d)] if self.tokens > 1 else []
            shapes += [(self.tokens, d)] if self.shares else []
            shapes += [(scatter, scatter)] * 2 if LIDAR in self.extras else []
        return shapes


def decode(value: Value) -> Moments:
    """The moments that `value` holds.

    Raises:
        RemoteProtocolError: it is not made as said above.
    """
    layout = _layout(value)
    found = [array.shape for array in value.arrays]
    shapes = layout.shapes(found[-1] if found else ())
    if found != shapes or any(array.dtype != "float32" for array in value.arrays):
        raise RemoteProtocolError("malformed", f"moments with arrays {found!s:.200}, not {shapes}")
    arrays = (_float64(array) for array in value.arrays)
    numbers = cast("list[float]", next(arrays).tolist())
    scalars = dict(zip((*SCALARS, *layout.extras), numbers, strict=True))
    for name in _COUNTS:
        _count(scalars[name], name)
    return _moments(layout, scalars, arrays)


def _layout(value: Value) -> _Layout:
    version = value.info.get("v")
    if version != _VERSION:
        raise RemoteProtocolError("malformed", f"moments of version {version!r:.20}, not 2")
    extras = _names(value.info.get("extras", []))
    return _Layout(
        _positive(value, "d"),
        _positive(value, "images"),
        _positive(value, "tokens"),
        _flag(value, "paired"),
        _flag(value, "due"),
        _flag(value, "shares"),
        _positive(value, "views") if LIDAR in extras else 0,
        extras,
    )


def _moments(layout: _Layout, scalars: dict[str, float], arrays: Iterator[Floats]) -> Moments:
    n, n_unit = int(scalars["n"]), int(scalars["n_unit"])
    rows = _spread(n, next(arrays), next(arrays))
    unit = _spread(n_unit, next(arrays) / max(n_unit, 1), next(arrays))
    target = _target(scalars, next(arrays)) if layout.paired else None
    gram = next(arrays) if layout.due else None
    images = _images(layout, scalars, rows, gram, arrays)
    position_means = next(arrays) if layout.due and layout.shares else None
    return Moments(
        layout.d,
        layout.images,
        rows,
        scalars["nonfinite"],
        _spread(n, np.asarray(scalars["norm_mean"]), np.asarray(scalars["norm_m2"])),
        unit,
        images,
        gram if n else None,
        _two_way(scalars, rows, layout.tokens, position_means),
        target,
        _scatter(layout, scalars, arrays) if layout.due and layout.views else None,
        {
            name: Average(float(n), scalars[name])
            for name in ("loss", *layout.extras)
            if name != LIDAR and np.isfinite(scalars[name])
        },
    )


def _images(
    layout: _Layout,
    scalars: dict[str, float],
    rows: Spread,
    gram: Floats | None,
    arrays: Iterator[Floats],
) -> ImageTokens:
    n = int(scalars["n_images"])
    if gram is not None:
        mean, own = (rows.mean, gram) if layout.tokens == 1 else (next(arrays), next(arrays))
        if n:
            return image_tokens(n, mean, own)
    return image_traces(n, scalars["image_trace"], scalars["image_square"])


def _two_way(
    scalars: dict[str, float], rows: Spread, tokens: int, position_means: Floats | None
) -> TwoWay | None:
    by_image, by_position = scalars["ss_image"], scalars["ss_position"]
    total = scalars["ss_total"]
    if tokens < 2 or not rows.n or not np.isfinite([by_image, by_position, total]).all():
        return None
    # Exact unless rows were left out: how many whole images remained is not said.
    images = rows.n / tokens
    mean = rows.mean if position_means is None else position_means.mean(axis=0)
    return TwoWay(images, tokens, mean, by_image, by_position, total, position_means)


def _scatter(
    layout: _Layout, scalars: dict[str, float], arrays: Iterator[Floats]
) -> Scatter | None:
    n = _count(scalars[LIDAR], LIDAR)
    between, within = next(arrays), next(arrays)
    return Scatter(n, n - 1, layout.views, between, within) if n > 1 else None


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


def _names(names: object) -> tuple[str, ...]:
    if isinstance(names, list):
        found = tuple(x for x in cast("list[object]", names) if isinstance(x, str) and x)
        # A name that is taken would overwrite what is not optional.
        if len(found) == len(cast("list[object]", names)) == len({*found, *SCALARS}) - len(SCALARS):
            return found
    raise RemoteProtocolError("malformed", f"moments with extras = {names!r:.80}")

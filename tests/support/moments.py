"""Values of kind ``moments``, version 2, made with numpy: a reference of the format."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sidestep.proto import Array, Value

NAN = float("nan")


def moments_value(
    x: npt.NDArray[Any],
    *,
    paired: npt.NDArray[Any] | None = None,
    due: bool = True,
    positions: npt.NDArray[np.int64] | None = None,
    shares: bool | None = None,
    loss: float = NAN,
    extras: dict[str, float] | None = None,
    scatter: tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None,
    tag: str = "x",
    step: int = 0,
) -> Value:
    """What a client writes of `x`, (B, D) or (B, N, D), all of whose rows are used.

    Args:
        x: any float dtype; everything is computed in float64 and rounded once, to float32.
        paired: the same shape.
        due: with Gram matrices.
        positions: (B,), the token that each image gives to the set of one token an image.
        shares: with position means; by default where they can be.
        loss: one number.
        extras: optional statistics.
        scatter: with the extra "lidar": views, scatter between and within images.
        tag: of the value.
        step: of the value.
    """
    x = np.asarray(x, np.float64)
    cube = x[:, None, :] if x.ndim == 2 else x
    b, tokens, d = cube.shape
    rows = cube.reshape(-1, d)
    ok = np.isfinite(rows).all(axis=1)
    if positions is None:
        positions = np.arange(b) * 7 % tokens
    drawn = cube[np.arange(b), positions]
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    shares = b > 1 and tokens > 1 if shares is None else shares
    good = rows[ok]
    norms = np.linalg.norm(good, axis=1)
    unit = good[norms > 0] / norms[norms > 0, None]
    row_gram = gram(good) if due or tokens == 1 else None
    image_gram = gram(drawn) if row_gram is None or tokens > 1 else row_gram
    position_means = cube.mean(axis=0)
    scalars = [
        len(good),
        np.count_nonzero(~np.isfinite(rows)),
        _mean(norms),
        ((norms - _mean(norms)) ** 2).sum(),
        len(unit),
        len(drawn),
        np.trace(image_gram),
        (image_gram**2).sum(),
        *(two_way(cube) if shares else (NAN, NAN, NAN)),
        *(pair_sums(good, paired, ok) if paired is not None else (NAN,) * 4),
        loss,
        *(extras or {}).values(),
    ]
    arrays = [scalars, _mean(good), m2(good), unit.sum(axis=0), m2(unit)]
    if paired is not None:
        arrays.append(_mean(np.asarray(paired, np.float64).reshape(-1, d)[ok]))
    if due:
        arrays.append(row_gram)
        arrays += [_mean(drawn), image_gram] if tokens > 1 else []
        arrays += [position_means] if shares else []
        arrays += scatter[1:] if scatter is not None else []
    info: dict[str, object] = {
        "v": 2,
        "d": d,
        "images": b,
        "tokens": tokens,
        "paired": paired is not None,
        "due": due,
        "shares": shares,
        "extras": list(extras or {}),
    }
    if scatter is not None:
        info["views"] = scatter[0]
    return Value("moments", tag, step, 10**9 * (1_700_000_000 + step), info, float32(*arrays))


def float32(*arrays: Any) -> tuple[Array, ...]:
    """Arrays as they cross the wire."""
    with np.errstate(over="ignore"):
        found = [np.asarray(array, np.float64).astype("<f4") for array in arrays]
    return tuple(Array("float32", array.shape, array.tobytes()) for array in found)


def gram(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The centred Gram matrix, (D, D)."""
    centred = rows - _mean(rows)
    return centred.T @ centred


def m2(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Per-dimension sums of squared deviations, (D,)."""
    return np.square(rows - _mean(rows)).sum(axis=0)


def two_way(cube: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Sums of squares by image, by position and in total, of (B, N, D)."""
    b, tokens, _ = cube.shape
    mean = cube.mean(axis=(0, 1))
    by_image = tokens * np.square(cube.mean(axis=1) - mean).sum()
    by_position = b * np.square(cube.mean(axis=0) - mean).sum()
    return float(by_image), float(by_position), float(np.square(cube - mean).sum())


def pair_sums(
    rows: npt.NDArray[np.float64], paired: npt.NDArray[Any], ok: Any
) -> tuple[float, float, float, float]:
    """Sum of cosines, sum of squared distances, m2 of the pairs, and their number."""
    pairs = np.asarray(paired, np.float64).reshape(len(ok), -1)[ok]
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(pairs, axis=1)
    cosines = (rows * pairs).sum(axis=1)[norms > 0] / norms[norms > 0]
    squares = np.square(rows - pairs).sum()
    return float(cosines.sum()), float(squares), float(m2(pairs).sum()), float(len(rows))


def _mean(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return rows.mean(axis=0) if len(rows) else np.zeros(rows.shape[1:])

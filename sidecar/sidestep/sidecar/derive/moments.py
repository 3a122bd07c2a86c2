"""A `moments` value of the client to the scalars that it stands for."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from sidestep.proto import RemoteProtocolError, Value
from sidestep.proto.records import Array

from .spectrum import participation_ratio, rankme


def scalars(value: Value) -> dict[str, float]:
    """The statistics of a representation, by tag.

    Args:
        value: of kind ``moments``: arrays mean (D,), (std, norm), and, when the spectrum was
            due, the centred Gram matrix (D, D); info has ``n``.

    Returns:
        `T_std` and `T_norm`, and with a Gram matrix `T_rank` and `T_pr`; one that is undefined
        is absent.

    Raises:
        RemoteProtocolError: the value is not made as said.
    """
    n = value.info.get("n")
    arrays = [_float64(array) for array in value.arrays]
    shapes = [array.shape for array in arrays]
    d = shapes[0][0] if shapes and len(shapes[0]) == 1 else 0
    if type(n) is not int or n < 1 or d < 1 or shapes[1:] not in ([(2,)], [(2,), (d, d)]):
        raise RemoteProtocolError("malformed", f"moments of n={n!r} with arrays {shapes}")
    found: dict[str, float | None] = {"std": float(arrays[1][0]), "norm": float(arrays[1][1])}
    if len(arrays) == 3:
        found["rank"] = rankme(arrays[0], arrays[2], n)
        found["pr"] = participation_ratio(arrays[2], n)
    return {f"{value.tag}_{name}": x for name, x in found.items() if x is not None}


def _float64(array: Array) -> npt.NDArray[np.float64]:
    data = np.frombuffer(array.data, dtype=np.dtype(array.dtype)).reshape(array.shape)
    return cast("npt.NDArray[np.float64]", data.astype(np.float64))

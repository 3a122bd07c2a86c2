"""Parts the records that are shown as they are from those that are one rank's part of a reduction.

A trainer emits both in turn. Whoever reads a row wants one of the two: the others are cut out of
its bytes before anybody looks at them, so that what is left is again as alike as it was emitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from sidestep.proto.records import SCALARS_HEAD
from sidestep.proto.tag_sets import ReducedTags

from . import mixed

_HEAD_WORDS: Final = SCALARS_HEAD.size // 8


def without(
    data: bytes | memoryview,
    places: mixed.Places,
    tag_sets: Mapping[int, tuple[str, ...]],
    *,
    reduced: bool,
) -> bytes | None:
    """The records at `places` but for the reduced ones, or but for the others.

    Args:
        data: of a row.
        places: where records of several tag sets in turn begin, in words of four bytes.
        tag_sets: the client's.
        reduced: whether those that are reduced go.

    Returns:
        The bytes of those that stay; None when all do.
    """
    ids, counts = mixed.tag_sets_of(data, places)
    known, which = np.unique(ids, return_inverse=True)
    goes: npt.NDArray[np.bool_] = np.fromiter(
        ((type(tag_sets.get(one)) is ReducedTags) is reduced for one in known.tolist()), np.bool_
    )
    if not goes.any():
        return None
    firsts = places // 2
    longs: npt.NDArray[np.int64] = np.frombuffer(data, "<i8", len(data) // 8)
    lengths = np.diff(firsts, append=firsts[-1] + _HEAD_WORDS + counts[-1])
    stays = np.repeat(~goes[which], lengths)
    return longs[int(firsts[0]) : int(firsts[0]) + len(stays)][stays].tobytes()

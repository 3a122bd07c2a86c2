"""Many frames back to back in one buffer: copied from templates, then filled in column by column.

Frames of several lengths in turn are no table, and one by one each costs Python ten steps or more.
Here a column is filled in one step whatever lies between its places.
"""

from __future__ import annotations

from collections.abc import Sequence

import google_crc32c
import numpy as np
import numpy.typing as npt

from .event_file import CRC, HEAD, MASK_DELTA

_Places = npt.NDArray[np.int64]


class Sheet:
    """Frames (see `event_file`) that lie one behind the other.

    Args:
        templates: frames with zeros where something is to be filled in.
        which: for each frame of the sheet the number of its template.

    Attributes:
        data: the frames.
        starts: where each begins.
    """

    def __init__(self, templates: Sequence[bytes], which: npt.NDArray[np.int64]) -> None:
        lengths = np.fromiter(map(len, templates), np.int64, len(templates))[which]
        self.data = bytearray().join(map(templates.__getitem__, which.tolist()))
        ends = np.cumsum(lengths)
        self.starts = ends - lengths
        self._ends = ends

    def put(self, dtype: str, places: _Places, numbers: npt.NDArray[np.generic]) -> None:
        """Write `numbers` as `dtype`, each at its place, which is any byte."""
        size = np.dtype(dtype).itemsize
        # One number begins at each byte; numpy knows that they are not aligned.
        column = np.ndarray((len(self.data) - size + 1,), dtype, self.data, 0, (1,))
        column[places] = numbers

    def seal(self) -> bytearray:
        """The frames, with the checksums of their bodies."""
        frozen, crc32c = bytes(self.data), google_crc32c.value
        ends = self._ends - CRC.size
        bodies = zip((self.starts + HEAD.size).tolist(), ends.tolist(), strict=True)
        crcs = np.fromiter((crc32c(frozen[a:b]) for a, b in bodies), np.uint32, len(ends))
        self.put("<u4", ends, masked_column(crcs))
        return self.data


def masked_column(crcs: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """`event_file.masked` for a column: the numbers wrap at 32 bits by themselves."""
    right, left = np.uint32(15), np.uint32(17)
    return ((crcs >> right) | (crcs << left)) + np.uint32(MASK_DELTA)


def places_of(firsts: _Places, tables: Sequence[_Places], which: npt.NDArray[np.int64]) -> _Places:
    """Where the numbers of all frames are.

    Args:
        firsts: for each frame what its places count from.
        tables: the places of each template's numbers.
        which: for each frame its template.
    """
    counts = np.fromiter(map(len, tables), np.int64, len(tables))
    together = np.concatenate(tables)
    begin = np.cumsum(counts) - counts
    each = counts[which]
    before = np.cumsum(each) - each
    index = np.arange(int(each.sum())) + np.repeat(begin[which] - before, each)
    found: _Places = together[index] + np.repeat(firsts, each)
    return found

"""Reads a value of kind ``parameters``, as the client writes it, and joins those of several shards.

Its arrays, for P parameters: counts by float bits, whole (P, 4097), or as the full buckets alone:
how many each parameter has (P,), their keys (M,) uint16 and their counts (M,), those of one
parameter after those of the other. Then, float32 and (P,) each: L2 norms, largest magnitudes, and
(for weights with an optimizer) L2 norms of the last update. At the end the P names, UTF-8, a line
each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sidestep.proto import RemoteProtocolError, Value

from .float_edges import BUCKETS

MAX_PARAMETERS: Final = 4000
"""In one value; the client sends no more."""

_MAX_COUNT: Final = 1 << 48
"""More elements nobody has; what is far beyond would overflow later."""

_COUNTS: Final = ("int32", "int64")
_NUMBERS: Final = ("float32", "float64")

Keys = npt.NDArray[np.uint16]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Parameter:
    """What is known of one parameter, or of a part of it.

    Attributes:
        keys: (k,), rising: the buckets that are not empty.
        counts: (k,): how many elements each of them holds.
        norm: L2, as the client reckoned it: in float32.
        largest: magnitude.
        update: L2 norm of the optimizer's last step; None where there is none.
    """

    keys: Keys
    counts: Counts
    norm: float
    largest: float
    update: float | None = None

    def row(self) -> Counts:
        """All counts, (4097,)."""
        row = np.zeros(BUCKETS, np.int64)
        row[self.keys] = self.counts
        return row

    def merged(self, other: Parameter) -> Parameter:
        """Of both parts together: what would have been found of the concatenation."""
        row = self.row()
        row[other.keys] += other.counts
        keys = np.flatnonzero(row)
        update = None
        if self.update is not None and other.update is not None:
            update = total_norm((self.update, other.update))
        return Parameter(
            keys.astype(np.uint16),
            row[keys],
            total_norm((self.norm, other.norm)),
            float(np.maximum(self.largest, other.largest)),  # a NaN stays one
            update,
        )


Parameters = Mapping[str, Parameter]
"""By name, in the order of the model."""


def merge(a: Parameters, b: Parameters) -> dict[str, Parameter]:
    """The parameters of two shards of a model: of two ranks at one step.

    What only one of them has (its shard is empty on the other rank) stays as it is.
    """
    merged = dict(a)
    for name, parameter in b.items():
        merged[name] = merged[name].merged(parameter) if name in merged else parameter
    return merged


def decode(value: Value) -> dict[str, Parameter]:
    """The parameters that `value` holds.

    Raises:
        RemoteProtocolError: it is not made as said above.
    """
    head = _head(value)
    arrays = [
        np.frombuffer(array.data, np.dtype(array.dtype).newbyteorder("<")).reshape(array.shape)
        for array in value.arrays
    ]
    names = bytes(arrays[-1].tobytes()).decode("utf-8", "replace").split("\n")
    rows = len(arrays[0])
    if len(names) != rows or len(set(names)) != rows:
        raise RemoteProtocolError("malformed", f"{len(set(names))} names of {rows} parameters")
    columns = [array.astype(np.float64).tolist() for array in arrays[head:-1]]
    buckets = _dense(arrays[0]) if head == 1 else _sparse(*arrays[:3])
    return {
        name: Parameter(*full, *row)
        for name, full, row in zip(names, buckets, zip(*columns, strict=True), strict=True)
    }


def _head(value: Value) -> int:
    """How many of the arrays hold the counts, if all arrays are as said above."""
    found = [(array.dtype, array.shape) for array in value.arrays]
    head = 1 if len(found) < 6 else 3
    rows = found[0][1][0] if found and found[0][1] else 0
    shapes: list[tuple[int, ...]] = [(rows, BUCKETS)]
    dtypes: list[tuple[str, ...]] = [_COUNTS]
    if head == 3:
        full = math.prod(found[1][1])
        shapes, dtypes = [(rows,), (full,), (full,)], [_COUNTS, ("uint16",), _COUNTS]
    numbers = len(found) - head - 1  # what is left but for the names
    shapes += [(rows,)] * numbers
    dtypes += [_NUMBERS] * numbers + [("uint8",)]
    if (
        numbers not in (2, 3)
        or not 1 <= rows <= MAX_PARAMETERS
        or [shape for _, shape in found[:-1]] != shapes
        or any(dtype not in known for (dtype, _), known in zip(found, dtypes, strict=True))
    ):
        raise RemoteProtocolError("malformed", f"parameters with arrays {found!s:.300}")
    return head


def _dense(rows: npt.NDArray[Any]) -> Iterator[tuple[Keys, Counts]]:
    for row in rows:
        keys = np.flatnonzero(row)
        yield keys.astype(np.uint16), _checked(row[keys])


def _sparse(
    sizes: npt.NDArray[Any], keys: Keys, counts: npt.NDArray[Any]
) -> Iterator[tuple[Keys, Counts]]:
    if (sizes < 0).any() or (sizes > BUCKETS).any() or int(sizes.sum()) != len(keys):
        raise RemoteProtocolError("malformed", "full buckets of parameters do not add up")
    ends = np.cumsum(sizes)
    for start, end in zip(ends - sizes, ends, strict=True):
        full = keys[start:end]
        if (full >= BUCKETS).any() or (full[1:] <= full[:-1]).any():
            raise RemoteProtocolError("malformed", "buckets of a parameter that do not rise")
        yield full, _checked(counts[start:end])


def _checked(counts: npt.NDArray[Any]) -> Counts:
    if (counts < 0).any() or (counts > _MAX_COUNT).any():
        raise RemoteProtocolError("malformed", "counts of a parameter that nobody can have")
    return counts.astype(np.int64)


def total_norm(norms: Sequence[float]) -> float:
    """The L2 norm of parts of which the norms are known; NaN if one of them is."""
    return math.nan if any(map(math.isnan, norms)) else math.hypot(*norms)

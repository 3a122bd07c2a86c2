"""Gradients and weights of a model, as the client counted them, to histograms and norms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sidestep.proto import RemoteProtocolError, Value
from sidestep.proto.records import Array

from .deriver import Derived, Source
from .float_edges import BUCKETS, along_the_line, nonfinite


def derive(_source: Source, value: Value) -> Iterator[Derived]:
    """Histograms and numbers of a value of kind ``parameters``.

    Its arrays: counts by float bits (P, 4097), L2 norms (P,), largest magnitudes (P,), for weights
    with an optimizer the norms of its last update (P,), and the P names, UTF-8, a line each.

    Yields:
        Under tag `T`: the histograms ``T/<name>``; ``T/<name>_norm`` and
        ``T/<name>_update_ratio``; ``T/norm``, L2 over all; ``T/nonfinite``, elements that are
        infinite or NaN.

    Raises:
        RemoteProtocolError: the value is not made as said.
    """
    names, counts, norms, largest, updates = _decoded(value)
    bad = [nonfinite(row) for row in counts]
    scalars = {f"{value.tag}/{name}_norm": norm for name, norm in zip(names, norms, strict=True)}
    if updates is not None:
        for name, norm, update in zip(names, norms, updates, strict=True):
            if norm > 0 and not np.isnan(update):
                scalars[f"{value.tag}/{name}_update_ratio"] = update / norm
    scalars[f"{value.tag}/norm"] = float(np.linalg.norm(norms))
    scalars[f"{value.tag}/nonfinite"] = float(sum(bad))
    yield Derived(value.step, value.time_ns, scalars)
    for at, name in enumerate(names):
        if counts[at].sum() > bad[at]:
            shown = _histogram(counts[at], norms[at], largest[at], whole=bad[at] == 0)
            tag = f"{value.tag}/{name}"
            made = Value("histogram_counts", tag, value.step, value.time_ns, *shown)
            yield Derived(value.step, value.time_ns, values=(made,))


def _histogram(
    counts: npt.NDArray[np.int64], norm: float, largest: float, *, whole: bool
) -> tuple[Mapping[str, object], tuple[Array, Array]]:
    """Settings and arrays of a ``histogram_counts`` value.

    The sum is that of the buckets' middles, within 6 % of each element; so is the sum of squares
    if there were elements that are not finite (not `whole`), else it is exact.
    """
    edges, found = along_the_line(counts)
    bound = largest if whole else float("inf")
    middles = (edges[1:] + edges[:-1]) / 2
    info = {
        "min": max(float(edges[0]), -bound),
        "max": min(float(edges[-1]), bound),
        "num": float(found.sum()),
        "sum": float((found * middles).sum()),
        "sum_squares": norm**2 if whole else float((found * middles**2).sum()),
    }
    return info, (_array(edges), _array(found.astype(np.float64)))


def _decoded(
    value: Value,
) -> tuple[list[str], npt.NDArray[np.int64], list[float], list[float], list[float] | None]:
    arrays = [
        np.frombuffer(array.data, np.dtype(array.dtype).newbyteorder("<")).reshape(array.shape)
        for array in value.arrays
    ]
    shapes = [array.shape for array in arrays]
    rows = shapes[0][0] if shapes and len(shapes[0]) == 2 else 0
    expected: list[Any] = [(rows, BUCKETS), *[(rows,)] * (len(shapes) - 2)]
    if rows < 1 or len(shapes) not in (4, 5) or shapes[:-1] != expected:
        raise RemoteProtocolError("malformed", f"parameters with arrays {shapes}")
    names = bytes(arrays[-1].tobytes()).decode("utf-8", "replace").split("\n")
    if len(names) != rows or (arrays[0] < 0).any():
        raise RemoteProtocolError("malformed", f"{len(names)} names of {rows} parameters")
    numbers = [array.astype(np.float64).tolist() for array in arrays[1:-1]]
    updates = numbers[2] if len(numbers) == 3 else None
    return names, arrays[0].astype(np.int64), numbers[0], numbers[1], updates


def _array(values: npt.NDArray[np.float64]) -> Array:
    data = np.ascontiguousarray(values, "<f8")
    return Array("float64", data.shape, data.tobytes())

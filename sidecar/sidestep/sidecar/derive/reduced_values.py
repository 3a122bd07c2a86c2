"""Values of several ranks to one: moments, parameters and histograms, exactly.

Moments and parameters are merged along a fixed tree over the ranks, neighbours first, as soon as
both are there: what comes out does not depend on the order in which they came, and few of them are
held. A histogram is counted when all are there, with the edges that their concatenation asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from sidestep.proto import Array, RemoteProtocolError, Value

from ..sinks.rendering.arrays import numpy_of
from ..sinks.rendering.buckets import (
    Moments as HistogramMoments,
    counted,
    counts_of,
    edges_of,
    moments_of,
    subsampled,
    support,
)
from . import additive, decode, moments, parameter_counts, parameters
from .deriver import Derived

Floats: TypeAlias = npt.NDArray[np.float64]

_COUNT_MISMATCH: Final = "the ranks' histograms were counted with different edges"


class Gathering(Protocol):
    """What is known of a value of which some ranks have spoken.

    Attributes:
        nbytes: about how much memory it takes.
    """

    nbytes: int

    def add(self, rank: int, value: Value) -> None:
        """Take a rank's part.

        Raises:
            RemoteProtocolError, ValueError: it is malformed, or does not go with the others.
        """
        ...

    def finish(self, run_id: int, tag: str, step: int, time_ns: int) -> Iterator[Derived]:
        """What is made of the parts that have come.

        Raises:
            RemoteProtocolError, ValueError: nothing can be.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Merging:
    """How parts of a kind are read, merged and used, and which numbers of two must be the same."""

    read: Callable[[Value], Any]
    shape: Callable[[Any], int]
    merge: Callable[[Any, Any], Any]
    use: Callable[[int, str, int, int, Any], Iterator[Derived]]


class Merged:
    """Parts that merge in pairs.

    Args:
        how: by what functions.
    """

    def __init__(self, how: _Merging) -> None:
        self.nbytes = 0
        self._how = how
        self._shape: int | None = None
        self._nodes: dict[tuple[int, int], tuple[Any, int]] = {}  # by level and place in it

    def add(self, rank: int, value: Value) -> None:  # noqa: D102
        node = self._how.read(value)
        shape = self._how.shape(node)
        if self._shape not in (None, shape):
            reason = f"{shape} dimensions, and another rank's part has {self._shape}"
            raise RemoteProtocolError("malformed", reason)
        self._shape = shape
        nbytes = 2 * sum(array.nbytes for array in value.arrays)
        level, place = 0, rank
        while (other := self._nodes.pop((level, place ^ 1), None)) is not None:
            found, size = other
            self.nbytes -= size
            left, right = (found, node) if place & 1 else (node, found)
            node, nbytes = self._how.merge(left, right), max(nbytes, size)
            level, place = level + 1, place >> 1
        self._nodes[level, place] = node, nbytes
        self.nbytes += nbytes

    def finish(self, run_id: int, tag: str, step: int, time_ns: int) -> Iterator[Derived]:  # noqa: D102
        if not self._nodes:
            return
        order = sorted(self._nodes, key=lambda node: node[1] << node[0])
        whole = self._nodes[order[0]][0]
        for node in order[1:]:
            whole = self._how.merge(whole, self._nodes[node][0])
        yield from self._how.use(run_id, tag, step, time_ns, whole)


class Histograms:
    """Histograms of raw elements, counted together at the end."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._parts: dict[int, Value] = {}

    def add(self, rank: int, value: Value) -> None:  # noqa: D102
        edges = value.info.get("bins") == "edges"
        if len(value.arrays) != 1 + edges:
            raise RemoteProtocolError("malformed", "a histogram has one array and its edges")
        first = next(iter(self._parts.values()), value)
        if value.info != first.info or (
            edges and bytes(value.arrays[1].data) != bytes(first.arrays[1].data)
        ):
            raise RemoteProtocolError("malformed", "the ranks' histograms ask for different bins")
        self._parts[rank] = value
        self.nbytes += sum(array.nbytes for array in value.arrays)

    def finish(self, run_id: int, tag: str, step: int, time_ns: int) -> Iterator[Derived]:  # noqa: D102
        parts = [self._parts[rank] for rank in sorted(self._parts)]
        if not parts:
            return
        data = np.concatenate([numpy_of(part.arrays[0]).reshape(-1) for part in parts])
        with np.errstate(all="ignore"):  # sums of huge values become infinite
            found = moments_of(data)
            if not found.num:
                raise ValueError(f"{tag!a:.100} at step {step}: no rank has a finite element")
            edges = edges_of(parts[0], data, found)
            counts = counts_of(data, edges)
            most = parts[0].info.get("max_bins")
            if isinstance(most, int) and most > 0:
                plain = parts[0].info.get("bins") is None
                counts, edges = subsampled(counts, edges, most, exponential=plain)
            value = _counts_value(tag, step, time_ns, found, *support(counts, edges))
        yield Derived(step, time_ns, values=[value])


class CountedHistograms:
    """Histograms that were counted already, with the same edges."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._parts: dict[int, tuple[HistogramMoments, Floats]] = {}
        self._limits: Floats | None = None

    def add(self, rank: int, value: Value) -> None:  # noqa: D102
        found, counts, limits = counted(value)
        if self._limits is None:
            self._limits = limits
        elif not np.array_equal(self._limits, limits):
            raise RemoteProtocolError("malformed", _COUNT_MISMATCH)
        self._parts[rank] = found, counts.astype(np.float64)
        self.nbytes += 2 * counts.nbytes

    def finish(self, run_id: int, tag: str, step: int, time_ns: int) -> Iterator[Derived]:  # noqa: D102
        parts = [self._parts[rank] for rank in sorted(self._parts)]
        if not parts or self._limits is None:
            return
        full = [found for found, _ in parts if found.num] or [parts[0][0]]
        whole = HistogramMoments(
            sum(found.num for found, _ in parts),
            min(found.low for found in full),
            max(found.high for found in full),
            sum(found.total for found, _ in parts),
            sum(found.squares for found, _ in parts),
        )
        counts = np.sum([counts for _, counts in parts], axis=0)
        value = _counts_value(tag, step, time_ns, whole, counts, self._limits)
        yield Derived(step, time_ns, values=[value])


def gathering(kind: str) -> Gathering:
    """What gathers the parts of values of `kind`.

    Raises:
        RemoteProtocolError: nothing does.
    """
    if kind == "moments":
        return Merged(_Merging(decode.decode, lambda part: part.d, additive.merge, _moments))
    if kind == "parameters":
        how = _Merging(parameter_counts.decode, lambda _: 0, parameter_counts.merge, _parameters)
        return Merged(how)
    if kind == "histogram":
        return Histograms()
    if kind == "histogram_counts":
        return CountedHistograms()
    raise RemoteProtocolError("malformed", f"values of kind {kind!a:.40} have no reduction")


def _moments(run_id: int, tag: str, step: int, time_ns: int, whole: Any) -> Iterator[Derived]:
    yield moments.derived(run_id, Value("moments", tag, step, time_ns), whole)


def _parameters(_run_id: int, tag: str, step: int, time_ns: int, whole: Any) -> Iterator[Derived]:
    return parameters.shown(tag, step, time_ns, whole)


def _counts_value(
    tag: str, step: int, time_ns: int, found: HistogramMoments, counts: Any, limits: Floats
) -> Value:
    info: dict[str, object] = {
        "min": found.low,
        "max": found.high,
        "num": found.num,
        "sum": found.total,
        "sum_squares": found.squares,
    }
    return Value("histogram_counts", tag, step, time_ns, info, [_array(limits), _array(counts)])


def _array(values: Any) -> Array:
    data = np.ascontiguousarray(values, "<f8")
    return Array("float64", data.shape, data.tobytes())

"""Gradients and weights of a model, as the client counted them, to histograms and norms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from sidestep.proto import RemoteProtocolError, Value
from sidestep.proto.limits import MAX_TAG_BYTES
from sidestep.proto.records import Array

from .deriver import Derived, Source
from .float_edges import along_the_line, nonfinite
from .parameter_counts import Parameter, Parameters, decode, total_norm

_RATIO: Final = "_update_ratio"
_LONGEST: Final = MAX_TAG_BYTES - len(_RATIO)

_SLACK: Final = 1e-3
"""Of a norm that was summed up in float32, which a bucket's bounds cannot be held against."""

Floats = npt.NDArray[np.float64]


def derive(_source: Source, value: Value) -> Iterator[Derived]:
    """Histograms and numbers of a value of kind ``parameters``.

    Raises:
        RemoteProtocolError: the value is not made as said in `parameter_counts`; or as `shown`.
    """
    return shown(value.tag, value.step, value.time_ns, decode(value))


def shown(own: str, step: int, time_ns: int, parameters: Parameters) -> Iterator[Derived]:
    """Histograms and numbers of parameters under the tag `own`.

    Yields:
        Under tag `T`: the histograms ``T/<name>``; ``T/<name>_norm`` and
        ``T/<name>_update_ratio``; ``T/norm``, L2 over all; ``T/nonfinite``, elements that are
        infinite or NaN. A parameter of that very name keeps its tag. Each parameter's numbers are
        a row of their own: which of them have a gradient may change with every step.

    Raises:
        RemoteProtocolError: at the end, if names are too long for a tag.
    """
    tags = {f"{own}/{name}" for name in parameters}
    norms: list[float] = []
    bad, too_long = 0, ""
    for name, parameter in parameters.items():
        tag = f"{own}/{name}"
        found = _Found(parameter)
        norms.append(found.norm)
        bad += found.bad
        if len(tag.encode()) > _LONGEST:
            too_long = tag
            continue
        scalars = {tag + suffix: x for suffix, x in found.figures() if tag + suffix not in tags}
        histograms = [
            Value("histogram_counts", tag, step, time_ns, info, arrays)
            for info, arrays in found.histograms()
        ]
        yield Derived(step, time_ns, scalars, histograms)
    totals = {f"{own}/norm": total_norm(norms), f"{own}/nonfinite": float(bad)}
    yield Derived(step, time_ns, {t: x for t, x in totals.items() if t not in tags})
    if too_long:
        raise RemoteProtocolError(
            "too_large", f"a name that is too long for a tag: {too_long!a:.100}"
        )


class _Found:
    """What is said of one parameter.

    Attributes:
        bad: elements that are infinite or NaN.
        norm: L2: as it came, exact but for float32; where squares leave float32's range, from the
            buckets, within 6 %.
    """

    def __init__(self, parameter: Parameter) -> None:
        counts = parameter.row()
        self._parameter = parameter
        self.bad = nonfinite(counts)
        self._finite = int(counts.sum()) - self.bad
        if self._finite:
            self._edges, self._counts = along_the_line(counts)
        self.norm = parameter.norm if self.bad else self._plausible(parameter.norm)

    def figures(self) -> Iterator[tuple[str, float]]:
        """Numbers by the suffix that follows the tag."""
        yield "_norm", self.norm
        update = self._parameter.update
        if update is not None and self.norm > 0 and not math.isnan(update):
            yield _RATIO, update / self.norm

    def histograms(self) -> Iterator[tuple[Mapping[str, object], tuple[Array, Array]]]:
        """Settings and arrays of a ``histogram_counts`` value; none without a finite element.

        The sum is that of the buckets' middles, within 6 % of each element; so is the sum of
        squares if there are elements that are not finite.
        """
        if not self._finite:
            return
        edges, counts = self._edges, self._counts
        # With a NaN there is no largest element.
        largest = math.inf if self.bad else self._parameter.largest
        info = {
            "min": max(float(edges[0]), -largest),
            "max": min(float(edges[-1]), largest),
            "num": float(counts.sum()),
            "sum": float((counts * (edges[1:] / 2 + edges[:-1] / 2)).sum()),
            "sum_squares": self._squares() if self.bad else self.norm**2,
        }
        yield info, (_array(edges), _array(counts.astype(np.float64)))

    def _plausible(self, norm: float) -> float:
        """`norm` if it lies where the buckets have it."""
        if not self._finite:
            return norm
        inner, outer = np.sort(np.abs([self._edges[:-1], self._edges[1:]]), axis=0)
        low, high = (math.sqrt((self._counts * bound**2).sum()) for bound in (inner, outer))
        if low * (1 - _SLACK) <= norm <= high * (1 + _SLACK):
            return norm
        return math.sqrt(self._squares())

    def _squares(self) -> float:
        """Σ x², as if the elements of a bucket were spread evenly over it."""
        low, high = self._edges[:-1], self._edges[1:]
        return float((self._counts * (low**2 + low * high + high**2)).sum() / 3)


def _array(values: Floats) -> Array:
    data = np.ascontiguousarray(values, "<f8")
    return Array("float64", data.shape, data.tobytes())

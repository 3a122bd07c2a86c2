"""The deriver of kind ``moments``: a representation's moments to all its statistics."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sidestep.proto import Array, Value

from .additive import Floats, Moments
from .decode import decode
from .deriver import Derived, Observation, Source
from .figures import figures
from .spectrum import Spectrum, spectrum

_HISTOGRAM_BINS = 30


def derive(source: Source, value: Value) -> Iterator[Derived]:
    """The figures of a representation, and when it was due its spectrum.

    Raises:
        RemoteProtocolError: the value is not made as `decode` says.
    """
    yield derived(source.run_id, value, decode(value))


def derived(run_id: int, value: Value, moments: Moments) -> Derived:
    """What is journalled of moments under the tag, at the step and the time of `value`."""
    found = figures(moments)
    whole = spectrum(moments)
    values: list[Value] = []
    if whole is not None:
        found.update(whole.figures)
        values = _drawn(value, whole, moments)
    return Derived(
        value.step,
        value.time_ns,
        {f"{value.tag}_{suffix}": x for suffix, x in found.items()},
        values,
        Observation(run_id, value.tag, value.step, value.time_ns, found),
    )


def _drawn(value: Value, whole: Spectrum, moments: Moments) -> list[Value]:
    """The eigenvalues for the sinks to draw: as a curve, and as a histogram of their logarithms."""
    positive = whole.eigenvalues[whole.eigenvalues > 0]
    if not positive.size:
        return []
    step, time_ns = value.step, value.time_ns
    info: dict[str, object] = {"n": moments.rows.n, "d": moments.d}
    info |= {k: whole.figures[k] for k in ("rank", "pr", "alpha") if k in whole.figures}
    return [
        Value("spectrum", f"{value.tag}_spectrum", step, time_ns, info, [_array(positive)]),
        Value(
            "histogram",
            f"{value.tag}_eigenvalues",
            step,
            time_ns,
            {"bins": _HISTOGRAM_BINS},
            [_array(np.log10(positive))],
        ),
    ]


def _array(numbers: Floats) -> Array:
    return Array("float64", numbers.shape, numbers.astype("<f8").tobytes())

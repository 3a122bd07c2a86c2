"""Counts by float bits become histograms that hold what the parameters were."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as st_numpy

from sidestep.proto import RemoteProtocolError, Value
from sidestep.proto.records import Array
from sidestep.sidecar.derive.deriver import Derived, Source
from sidestep.sidecar.derive.float_edges import (
    BUCKETS,
    ZEROS,
    along_the_line,
    magnitudes,
    nonfinite,
)
from sidestep.sidecar.derive.parameters import derive

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = st_numpy.arrays(np.float32, st.integers(1, 80), elements=FLOATS)


def counts_of(values: np.ndarray) -> np.ndarray:
    keys = (values.astype(np.float32).view(np.uint32) >> np.uint32(20)).astype(np.int64)
    return np.bincount(np.where(values == 0, ZEROS, keys), minlength=BUCKETS)


def array(values: Any, dtype: str) -> Array:
    data = np.asarray(values, dtype)
    return Array(dtype, data.shape, data.tobytes())


def value_of(parameters: dict[str, np.ndarray], updates: list[float] | None = None) -> Value:
    exact = [p.astype(np.float64) for p in parameters.values()]
    arrays = [
        array([counts_of(p) for p in parameters.values()], "int32"),
        array([np.sqrt(np.square(p).sum()) for p in exact], "float32"),
        array([np.abs(p).max(initial=0) for p in exact], "float32"),
        *([array(updates, "float32")] if updates is not None else []),
        array(list("\n".join(parameters).encode()), "uint8"),
    ]
    return Value("parameters", "gradients", 7, 5, {"what": "gradients"}, arrays)


def derived(value: Value) -> tuple[dict[str, float], dict[str, Value]]:
    scalars: dict[str, float] = {}
    values: dict[str, Value] = {}
    found: Derived
    for found in derive(Source(1, 2, 3), value):
        assert (found.step, found.time_ns) == (7, 5)
        scalars.update(found.scalars)
        values.update({v.tag: v for v in found.values})
    return scalars, values


@given(VALUES)
def test_every_element_is_within_its_bucket(values: np.ndarray) -> None:
    edges, counts = along_the_line(counts_of(values))
    assert (np.diff(edges) > 0).all()
    assert counts.sum() == len(values)
    assert counts[0] > 0
    assert counts[-1] > 0
    # The bucket that numpy finds for each element, with the buckets closed towards zero.
    exact = values.astype(np.float64)
    for edge, upper, count in zip(edges, edges[1:], counts, strict=False):
        if upper <= 0:
            inside = (exact > edge) & (exact <= upper)
        elif edge < 0:
            inside = exact == 0
        else:
            inside = (exact >= edge) & (exact < upper)
        if upper == magnitudes()[-1]:
            inside = exact >= edge
        if edge == -magnitudes()[-1]:
            inside = exact <= upper
        assert inside.sum() == count, (edge, upper)


@given(VALUES)
def test_moments(values: np.ndarray) -> None:
    scalars, found = derived(value_of({"w": values}))
    exact = values.astype(np.float64)
    info = found["gradients/w"].info
    assert info["num"] == len(values)
    assert scalars["gradients/nonfinite"] == 0
    tiny = 2.0**-126
    assert info["min"] <= exact.min() + tiny  # type: ignore[operator]
    assert info["max"] >= exact.max() - tiny  # type: ignore[operator]
    # Within a fine bucket of what is there; the coarse ones are far below the largest.
    slack = np.abs(exact).max() / 8 + tiny
    assert info["min"] >= exact.min() - slack  # type: ignore[operator]
    assert info["max"] <= exact.max() + slack  # type: ignore[operator]
    with np.errstate(over="ignore"):
        norm = math.sqrt(np.square(exact).sum())
    if 1e-30 < norm < 1e30:
        assert scalars["gradients/w_norm"] == pytest.approx(norm, rel=1e-6)
        assert scalars["gradients/norm"] == pytest.approx(norm, rel=1e-6)
        assert info["sum_squares"] == pytest.approx(norm**2, rel=1e-5)


def test_a_picture_needs_few_buckets() -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(100_000) * 10.0 ** rng.uniform(-30, 0, 100_000)).astype("f4")
    _, counts = along_the_line(counts_of(values))
    assert len(counts) < 450
    assert counts.sum() == len(values)


def test_numbers_of_several_parameters() -> None:
    parameters = {
        "a": np.array([3.0, 4.0], "f4"),
        "b": np.array([np.inf, np.nan, 12.0], "f4"),
        "zeros": np.zeros(2, "f4"),
        "gone": np.array([np.nan], "f4"),
    }
    scalars, values = derived(value_of(parameters, [0.5, 1.0, math.nan, 1.0]))
    assert scalars["gradients/a_norm"] == 5
    assert scalars["gradients/a_update_ratio"] == 0.1
    assert "gradients/zeros_update_ratio" not in scalars
    assert scalars["gradients/nonfinite"] == 3
    assert set(values) == {"gradients/a", "gradients/b", "gradients/zeros"}
    assert values["gradients/b"].info["num"] == 1
    assert values["gradients/zeros"].info["num"] == 2
    assert nonfinite(counts_of(parameters["b"])) == 2


@pytest.mark.parametrize(
    "arrays",
    [
        (),
        (array(np.zeros((1, 5)), "int32"),),
        (array(np.zeros((1, BUCKETS)), "int32"), array([1.0], "float32"), array([97], "uint8")),
        (
            array(np.zeros((2, BUCKETS)), "int32"),
            array([1.0, 1.0], "float32"),
            array([1.0, 1.0], "float32"),
            array([97], "uint8"),
        ),
        (
            array(-np.ones((1, BUCKETS)), "int32"),
            array([1.0], "float32"),
            array([1.0], "float32"),
            array([97], "uint8"),
        ),
    ],
)
def test_malformed(arrays: tuple[Array, ...]) -> None:
    with pytest.raises(RemoteProtocolError):
        list(derive(Source(1, 2, 3), Value("parameters", "g", 0, 0, {}, arrays)))

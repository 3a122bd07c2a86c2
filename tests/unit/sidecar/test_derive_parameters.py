"""Counts by float bits become histograms that hold what the parameters were."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from sidestep.sidecar.derive.parameter_counts import MAX_PARAMETERS, decode, merge
from sidestep.sidecar.derive.parameters import derive

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = st_numpy.arrays(np.float32, st.integers(1, 80), elements=FLOATS)


def counts_of(values: np.ndarray) -> np.ndarray:
    keys = (values.astype(np.float32).view(np.uint32) >> np.uint32(20)).astype(np.int64)
    return np.bincount(np.where(values == 0, ZEROS, keys), minlength=BUCKETS)


def array(values: Any, dtype: str) -> Array:
    data = np.asarray(values, dtype)
    return Array(dtype, data.shape, data.tobytes())


def norm_of(values: np.ndarray) -> np.float32:
    """As a client reckons it: squares in float32, which overflow and vanish."""
    with np.errstate(all="ignore"):
        return np.sqrt(np.square(values.astype(np.float32)).sum(dtype=np.float32))


def value_of(
    parameters: dict[str, np.ndarray], updates: list[float] | None = None, sparse: bool = False
) -> Value:
    rows = [counts_of(p) for p in parameters.values()]
    counts = [array(rows, "int32")]
    if sparse:
        full = [np.flatnonzero(row) for row in rows]
        counts = [
            array([len(keys) for keys in full], "int32"),
            array(np.concatenate(full), "uint16"),
            array(
                np.concatenate([row[keys] for row, keys in zip(rows, full, strict=True)]), "int64"
            ),
        ]
    with np.errstate(all="ignore"):
        largest = [np.abs(p).max(initial=0) for p in parameters.values()]
    arrays = [
        *counts,
        array([norm_of(p) for p in parameters.values()], "float32"),
        array(largest, "float32"),
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
    assert info["min"] <= exact.min() + tiny
    assert info["max"] >= exact.max() - tiny
    # Within a fine bucket of what is there; the coarse ones are far below the largest.
    slack = np.abs(exact).max() / 8 + tiny
    assert info["min"] >= exact.min() - slack
    assert info["max"] <= exact.max() + slack
    norm = math.sqrt(np.square(exact).sum())
    # Within a bucket where float32 has no squares, and as exact as it is elsewhere.
    rel = 1e-6 if 1e-15 < norm < 1e18 else 0.07
    if norm > 1e-37:
        assert scalars["gradients/w_norm"] == pytest.approx(norm, rel=rel)
        assert scalars["gradients/norm"] == pytest.approx(norm, rel=rel)
        assert info["sum_squares"] == pytest.approx(norm**2, rel=2 * rel)


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


def test_both_forms_of_counts_say_the_same() -> None:
    rng = np.random.default_rng(0)
    parameters = {f"p{i}": rng.standard_normal(10**i).astype("f4") for i in range(5)}
    assert derived(value_of(parameters, sparse=True)) == derived(value_of(parameters))


@given(st.lists(VALUES, min_size=1, max_size=4), st.integers(0, 80))
def test_merged_is_concatenated(arrays: list[np.ndarray], at: int) -> None:
    whole = {f"p{i}": values for i, values in enumerate(arrays)}
    shards = [
        {n: part for n, v in whole.items() if len(part := v[half])}
        for half in (slice(at), slice(at, None))
    ]
    parts = [decode(value_of(shard)) if shard else {} for shard in shards]
    merged, expected = merge(*parts), decode(value_of(whole))
    assert merged.keys() == expected.keys()
    for name, found in merged.items():
        np.testing.assert_array_equal(found.row(), expected[name].row())
        assert found.largest == expected[name].largest
        if 1e-15 < expected[name].norm < 1e18:
            assert found.norm == pytest.approx(expected[name].norm, rel=1e-6)


def test_updates_and_what_is_not_finite_are_merged() -> None:
    nan, inf = float("nan"), float("inf")
    a = decode(value_of({"w": np.array([3, inf], "f4"), "v": np.array([1], "f4")}, [3, 1]))
    b = decode(value_of({"w": np.array([4, nan], "f4"), "v": np.array([1], "f4")}, [4, nan]))
    merged = merge(a, b)
    assert merged["w"].update == 5
    assert math.isnan(merged["w"].norm)
    assert math.isnan(merged["w"].largest)
    assert nonfinite(merged["w"].row()) == 2
    assert merged["v"].update is not None
    assert math.isnan(merged["v"].update)
    assert merge(a, decode(value_of({"w": np.array([4], "f4")})))["w"].update is None


def test_a_parameter_whose_name_is_that_of_a_number_keeps_its_tag() -> None:
    one = np.ones(1, "f4")
    scalars, values = derived(value_of({"norm": one, "a": one, "a_norm": one}))
    assert set(values) == {"gradients/norm", "gradients/a", "gradients/a_norm"}
    assert not set(scalars) & set(values)
    assert scalars["gradients/a_norm_norm"] == 1


def test_a_name_that_is_too_long_costs_only_itself() -> None:
    rows = derive(Source(1, 2, 3), value_of({"ä" * 600: np.ones(5), "w": np.ones(4)}))
    scalars = {**next(rows).scalars, **next(rows).scalars}
    with pytest.raises(RemoteProtocolError, match="too long for a tag"):
        next(rows)
    expected = {"gradients/w_norm": 2, "gradients/norm": 3, "gradients/nonfinite": 0}
    assert scalars == pytest.approx(expected)


def test_each_parameter_is_a_row_of_numbers_of_its_own() -> None:
    # Else every new set of parameters that have a gradient would be a new set of tags, for ever.
    parameters = {f"p{i}": np.ones(1, "f4") for i in range(MAX_PARAMETERS)}
    rows = [
        tuple(found.scalars)
        for found in derive(Source(1, 2, 3), value_of(parameters, [1.0] * len(parameters), True))
    ]
    assert rows[-1] == ("gradients/norm", "gradients/nonfinite")
    assert len(rows) == MAX_PARAMETERS + 1
    assert all(len(row) == 2 for row in rows)


def good(sparse: bool) -> list[Array]:
    two = {"a": np.array([1, 2], "f4"), "b": np.array([0], "f4")}
    return list(value_of(two, [1.0, 2.0], sparse).arrays)


Change = Callable[[list[Array]], object]


def put(at: int, values: Any, dtype: str) -> Change:
    return lambda arrays: arrays.__setitem__(at, array(values, dtype))


DENSE: dict[str, Change] = {
    "nothing": lambda a: a.clear(),
    "one array": lambda a: a.__delitem__(slice(1, None)),
    "three": lambda a: a.__delitem__(slice(1, 3)),
    "few buckets": put(0, np.zeros((2, 5)), "int32"),
    "one row": put(0, np.zeros((1, BUCKETS)), "int32"),
    "no rows": put(0, np.zeros((0, BUCKETS)), "int32"),
    "no dimensions": put(0, 3, "int32"),
    "negative": put(0, np.full((2, BUCKETS), -1), "int32"),
    "huge": put(0, np.full((2, BUCKETS), 1 << 62), "int64"),
    "unsigned": put(0, np.ones((2, BUCKETS)), "uint64"),
    "floats": put(0, np.ones((2, BUCKETS)), "float32"),
    "norms": put(1, [1.0], "float32"),
    "norms are integers": put(1, [1, 1], "int32"),
    "names": put(-1, list(b"a\nb\nc"), "uint8"),
    "one name twice": put(-1, list(b"a\na"), "uint8"),
    "names are floats": put(-1, [1.0], "float32"),
}
SPARSE: dict[str, Change] = {
    "more": lambda a: a.append(a[-1]),
    "sizes": put(0, [1, 1], "int32"),
    "negative sizes": put(0, [4, -1], "int32"),
    "overflowing sizes": put(0, [(1 << 63) - 1, 4], "int64"),
    "matrix": put(0, np.ones((2, 1)), "int32"),
    "keys": put(1, [1, 2], "uint16"),
    "keys beyond": put(1, [1, BUCKETS, 3], "uint16"),
    "keys that fall": put(1, [5, 4, 3], "uint16"),
    "a key twice": put(1, [4, 4, 3], "uint16"),
    "signed keys": put(1, [1, 2, 3], "int16"),
    "negative": put(2, [1, -1, 1], "int32"),
    "counts": put(2, [1, 1], "int32"),
}


@pytest.mark.parametrize(
    ("sparse", "name"), [*((False, name) for name in DENSE), *((True, name) for name in SPARSE)]
)
def test_malformed(sparse: bool, name: str) -> None:
    arrays = good(sparse)
    assert derived(Value("parameters", "g", 7, 5, {}, list(arrays)))[1]
    (SPARSE if sparse else DENSE)[name](arrays)
    with pytest.raises(RemoteProtocolError):
        list(derive(Source(1, 2, 3), Value("parameters", "g", 7, 5, {}, arrays)))


def test_too_many() -> None:
    count = MAX_PARAMETERS + 1
    ones = array(np.ones(count), "float32")
    counts = array(np.ones(count), "int32")
    names = array(list("\n".join(map(str, range(count))).encode()), "uint8")
    arrays = [counts, array(np.ones(count), "uint16"), counts, ones, ones, names]
    with pytest.raises(RemoteProtocolError):
        decode(Value("parameters", "g", 7, 5, {}, arrays))


@given(st.sampled_from([math.nan, math.inf, -1.0, 1e300, 0.0]))
def test_numbers_that_cannot_be_harm_nobody(number: float) -> None:
    arrays = good(sparse=False)
    for at in (1, 2, 3):
        arrays[at] = array([number, number], "float64")
    scalars, _ = derived(Value("parameters", "g", 7, 5, {}, arrays))
    assert scalars["g/a_norm"] == pytest.approx(math.sqrt(5), rel=0.07)

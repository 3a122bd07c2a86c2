"""Moments off the wire: what the format says is what arrives, and nothing else gets in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sidestep.proto import Array, RemoteProtocolError, Value
from sidestep.sidecar.derive.decode import SCALARS, decode
from tests.support.moments import float32, gram, m2, moments_value, two_way

RNG = np.random.default_rng(3)
X = RNG.normal(size=(6, 4, 5)) + 2
Y = X + RNG.normal(size=X.shape)


def test_every_part_arrives_in_its_place() -> None:
    drawn = np.array([0, 3, 1, 1, 2, 0])
    value = moments_value(X, paired=Y, loss=0.25, extras={"koleo": 1.5}, positions=drawn)
    found = decode(value)
    rows, pairs = X.reshape(-1, 5), Y.reshape(-1, 5)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)  # noqa: E731
    assert (found.d, found.rows.n, found.unit.n, found.images.n, found.nonfinite) == (
        5,
        24,
        24,
        6,
        0,
    )
    close(found.rows.mean, rows.mean(axis=0))
    close(found.rows.m2, m2(rows))
    close(found.gram, gram(rows))
    close(found.images.gram, gram(X[np.arange(6), drawn]))
    close(found.images.mean, X[np.arange(6), drawn].mean(axis=0))
    norms = np.linalg.norm(rows, axis=1)
    close([found.norms.mean, found.norms.m2], [norms.mean(), norms.var() * 24])
    close(found.unit.mean, (rows / norms[:, None]).mean(axis=0))
    close(found.unit.m2, m2(rows / norms[:, None]))
    assert found.two_way is not None
    assert (found.two_way.images, found.two_way.tokens) == (6, 4)
    close([found.two_way.by_image, found.two_way.by_position, found.two_way.total], two_way(X))
    close(found.two_way.position_means, X.mean(axis=0))
    assert found.target is not None
    close(found.target.mean, pairs.mean(axis=0))
    close(found.target.m2, m2(pairs).sum())
    close(found.target.squares, np.square(rows - pairs).sum())
    assert {name: a.value for name, a in found.averages.items()} == {"loss": 0.25, "koleo": 1.5}


def test_what_is_not_there_is_not_there() -> None:
    found = decode(moments_value(X[:, 0], due=False))
    assert found.gram is found.images.gram is found.two_way is found.target is None
    assert found.averages == {}
    assert found.images.n == 6
    due = decode(moments_value(X[:, 0]))
    np.testing.assert_array_equal(due.images.gram, due.gram)  # one and the same set of rows


def test_rows_that_are_not_finite_count_for_nothing_else() -> None:
    broken = X[:, 0].copy()
    broken[2, 1], broken[4, 0], broken[4, 2] = np.nan, np.inf, -np.inf
    found = decode(moments_value(broken))
    assert (found.rows.n, found.nonfinite) == (4, 3)
    np.testing.assert_allclose(found.rows.mean, X[[0, 1, 3, 5], 0].mean(axis=0), rtol=1e-6)
    nothing = decode(moments_value(np.full((3, 4), np.nan)))
    assert (nothing.rows.n, nothing.unit.n, nothing.images.n, nothing.nonfinite) == (0, 0, 0, 12)


GOOD = moments_value(X, paired=Y, extras={"koleo": 1.5})


def changed(**info: Any) -> Value:
    return replace(GOOD, info={**GOOD.info, **info})


def with_scalar(name: str, number: float) -> Value:
    numbers = np.frombuffer(GOOD.arrays[0].data, "<f4").copy()
    numbers[SCALARS.index(name)] = number
    return replace(GOOD, arrays=[*float32(numbers), *GOOD.arrays[1:]])


MALFORMED = [
    changed(v=1),
    changed(v=None),
    changed(d=0),
    changed(d=True),
    changed(d=6),
    changed(d="5"),
    changed(tokens=-1),
    changed(tokens=3),
    changed(tokens=1),
    changed(paired=1),
    changed(paired=False),
    changed(due=None),
    changed(due=False),
    changed(shares=False),
    changed(extras=[]),
    changed(extras="koleo"),
    changed(extras=[b"koleo"]),
    changed(extras=["a", "b"]),
    changed(extras=["", "koleo"]),
    changed(extras=["lidar"]),
    changed(extras=["lidar"], views=0),
    changed(extras=["lidar"], views=2),
    changed(extras=["lidar"], views=2, due=False, shares=False),
    replace(
        changed(extras=["lidar"], views=2),
        arrays=[*GOOD.arrays, *float32(np.array(1.0), np.array(1.0))],
    ),
    replace(
        changed(extras=["lidar"], views=2),
        arrays=[*GOOD.arrays, *float32(np.ones((2, 2)), np.ones((3, 3)))],
    ),
    changed(extras=["loss"]),
    changed(extras=["n"]),
    replace(GOOD, arrays=[]),
    replace(GOOD, arrays=GOOD.arrays[:-1]),
    replace(GOOD, arrays=[*GOOD.arrays, GOOD.arrays[0]]),
    replace(GOOD, arrays=[*GOOD.arrays[:-1], Array("float64", (4, 5), bytes(160))]),
    with_scalar("n", np.nan),
    with_scalar("n", np.inf),
    with_scalar("n", -1),
    with_scalar("n_unit", 0.5),
    with_scalar("n_images", 1e30),
    with_scalar("nonfinite", np.nan),
    with_scalar("n_pairs", np.nan),
]


@pytest.mark.parametrize("value", MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_malformed_is_refused(value: Value) -> None:
    with pytest.raises(RemoteProtocolError, match="moments"):
        decode(value)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_bytes_decode_or_are_refused(data: st.DataObject) -> None:
    """Numbers of any value in any array; nothing but RemoteProtocolError comes of them."""
    arrays = list(GOOD.arrays)
    for at in data.draw(st.sets(st.integers(0, len(arrays) - 1), min_size=1)):
        junk = np.random.default_rng(data.draw(st.integers(0, 2**32))).bytes(arrays[at].nbytes)
        arrays[at] = replace(arrays[at], data=junk)
    try:
        decode(replace(GOOD, arrays=arrays))
    except RemoteProtocolError:
        pass

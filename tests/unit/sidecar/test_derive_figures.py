"""Every statistic against its closed form, and against a reference made of the raw rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sidestep.sidecar.derive.decode import decode
from sidestep.sidecar.derive.figures import figures
from sidestep.sidecar.derive.spectrum import spectrum
from tests.support.moments import float32, moments_value
from tests.support.representations import reference


def found_in(x: Any, **options: Any) -> dict[str, float]:
    """All figures that the daemon makes of `x`."""
    moments = decode(moments_value(np.asarray(x), **options))
    whole = spectrum(moments)
    return figures(moments) | (whole.figures if whole is not None else {})


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


def as_bfloat16(x: Any) -> Any:
    """Rounded to eight bits of mantissa."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x8000) & np.uint32(0xFFFF0000)).view(np.float32)


# --- against the reference -----------------------------------------------------------------------

POWER = np.arange(1, 33) ** -0.75  # standard deviations
CASES = {
    "B, D": normal(300, 24),
    "n < D": normal(20, 64),
    "n > D": normal(2000, 16) * 3,
    "B, N, D": normal(12, 9, 20) + normal(12, 1, 20, seed=1) + normal(1, 9, 20, seed=2),
    "B, N, D with n < D": normal(4, 5, 48) + normal(4, 1, 48, seed=3),
    "one image": normal(1, 40, 16),
    "one token": normal(40, 1, 16),
    "power law": normal(500, 32) * POWER,
    "large mean": normal(400, 24) + 1000,
    "small": normal(200, 24) * 1e-6 + 2e-6,
    "large": normal(200, 24) * 1e6,
    "bfloat16": as_bfloat16(normal(200, 24) + 1),
    "float16": normal(200, 24).astype(np.float16),
    "two rows": normal(2, 8),
    "three rows": normal(3, 8),
    "D = 1": normal(50, 1) + 3,
    "D = 2": normal(9, 2),
}


@pytest.mark.parametrize("due", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_against_the_reference(name: str, due: bool) -> None:
    x = CASES[name]
    found, expected = found_in(x, due=due), reference(x, due=due)
    assert found.keys() == expected.keys()
    # Sums and Gram matrices are rounded to float32 once.
    for suffix, value in expected.items():
        assert found[suffix] == pytest.approx(value, rel=2e-5, abs=2e-6), suffix


@pytest.mark.parametrize("shape", [(64, 12), (8, 6, 12)])
@pytest.mark.parametrize("distance", [0.0, 0.3, 10.0])
def test_pairs_against_the_reference(shape: tuple[int, ...], distance: float) -> None:
    y = normal(*shape) + 0.5
    x = y + distance * normal(*shape, seed=1)
    found, expected = found_in(x, paired=y, loss=0.125), reference(x, paired=y)
    assert found["loss"] == 0.125
    for suffix in ("target_cosine", "target_error", "target_variance"):
        assert found[suffix] == pytest.approx(expected[suffix], rel=1e-5, abs=1e-9), suffix
    if not distance:
        assert (found["target_cosine"], found["target_error"]) == (pytest.approx(1.0), 0.0)


def test_the_mean_of_the_target_has_an_error_of_one() -> None:
    y = normal(4000, 16) + 7
    assert found_in(np.broadcast_to(y.mean(axis=0), y.shape), paired=y)[
        "target_error"
    ] == pytest.approx(1, abs=1e-3)


# --- closed forms --------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [1e-3, 1.0, 50.0])
def test_gaussian_rows(s: float) -> None:
    found = found_in(normal(4096, 64) * s, due=False)
    assert found["std"] == pytest.approx(s, rel=0.01)
    assert found["cosine"] == pytest.approx(0, abs=1e-3)
    assert found["std_normalized"] == pytest.approx(1, rel=0.01)
    assert found["variance_share"] == pytest.approx(1, abs=1e-3)
    assert found["pr_images"] == pytest.approx(64, abs=1)
    assert found["norm_cv"] == pytest.approx(1 / np.sqrt(2 * 64), rel=0.05)
    assert found["dead_fraction"] == found["nonfinite"] == 0


def test_one_hot_rows_have_norm_one() -> None:
    found = found_in(np.eye(16))
    assert (found["norm"], found["norm_cv"]) == (1.0, 0.0)
    assert found["cosine"] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("shape", [(32, 16), (8, 4, 16)])
def test_identical_rows_are_a_collapse(shape: tuple[int, ...]) -> None:
    found = found_in(np.broadcast_to(np.arange(16.0) - 3, shape))
    assert found["variance_share"] == found["std"] == found["norm_cv"] == 0
    assert found["cosine"] == pytest.approx(1, abs=1e-6)
    assert found["std_normalized"] == pytest.approx(0, abs=1e-6)
    assert found["rank"] == pytest.approx(1, abs=1e-4)
    for undefined in ("pr", "pr_images", "nesum", "entropy_rank", "alpha", "condition"):
        assert undefined not in found
    assert not any(name.startswith("share_") for name in found)


def test_rows_of_zeros_are_identical_rows() -> None:
    found = found_in(np.zeros((6, 4)))
    assert found == {
        "n_rows": 6,
        "n_images": 6,
        "n_image_tokens": 6,
        "n_dims": 4,
        "nonfinite": 0,
        "std": 0,
        "norm": 0,
        "variance_share": 0,
        "dead_fraction": 1,
    }


def test_every_token_the_same_layer_normed_vector() -> None:
    """Standard deviation over all elements 1, norm √D: what std and norm alone call healthy."""
    vector = normal(768)
    vector = (vector - vector.mean()) / vector.std()
    found = found_in(np.broadcast_to(vector, (8, 16, 768)), due=False)
    assert found["norm"] == pytest.approx(np.sqrt(768))
    assert found["variance_share"] < 1e-10


def test_dead_dimensions_are_counted() -> None:
    x = normal(500, 20)
    x[:, :3] = 7.0  # constant
    x[:, 3] *= 1e-3  # nearly
    x[:, 4] *= 0.1  # weak, alive
    assert found_in(x)["dead_fraction"] == pytest.approx(4 / 20)
    x[:, 5:15] = 0.0  # more than half: the median itself is zero
    assert found_in(x)["dead_fraction"] == pytest.approx(13 / 20)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (normal(16, 1, 8) + np.zeros((16, 10, 8)), (1, 0, 0)),
        (normal(1, 10, 8) + np.zeros((16, 10, 8)), (0, 1, 0)),
        (normal(64, 64, 8), (1 / 64, 1 / 64, 1 - 2 / 64)),
    ],
    ids=["all patches equal", "position codes only", "independent"],
)
def test_shares(x: Any, expected: tuple[float, float, float]) -> None:
    found = found_in(x, due=False)
    shares = [found[f"share_{name}"] for name in ("image", "position", "residual")]
    assert shares == pytest.approx(expected, abs=3e-3)
    assert sum(shares) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 5, 3), (5, 1, 3), (5, 3)])
def test_no_shares_of_one_image_or_one_token(shape: tuple[int, ...]) -> None:
    assert not any(name.startswith("share_") for name in found_in(normal(*shape)))


def test_one_token_an_image_is_what_images_are_worth() -> None:
    """Most of the variance between images: tokens read far too few directions, images do not."""
    between = normal(256, 1, 256)
    x = np.sqrt(0.8) * between + np.sqrt(0.2) * normal(256, 16, 256, seed=1)
    assert found_in(x, due=False)["pr_images"] == pytest.approx(256, abs=30)


# --- what is undefined is absent -----------------------------------------------------------------


def test_no_finite_row() -> None:
    assert found_in(np.full((4, 3), np.nan)) == {
        "n_rows": 0,
        "n_images": 4,
        "n_image_tokens": 0,
        "n_dims": 3,
        "nonfinite": 12,
    }


def test_one_row() -> None:
    found = found_in([[3.0, 4.0]])
    assert found.keys() == {"n_rows", "n_images", "n_image_tokens", "n_dims", "nonfinite", "norm"}
    assert found["norm"] == 5


def test_figures_of_finite_rows_are_not_touched_by_the_others() -> None:
    x = normal(40, 6)
    broken = np.concatenate([x, np.full((2, 6), np.inf)])
    found, expected = found_in(broken), reference(x)
    assert (found.pop("nonfinite"), found.pop("n_images")) == (12, 42)
    for name, value in found.items():
        assert value == pytest.approx(expected[name], rel=1e-5, abs=2e-6), name


def test_what_overflowed_on_the_way_is_absent() -> None:
    found = found_in(normal(30, 4) * 1e25)
    assert found["n_rows"] == 30
    assert not {"std", "variance_share", "pr_images", "pr", "rank"} & found.keys()


@settings(max_examples=150, deadline=None)
@given(
    numbers=st.lists(
        st.sampled_from([0.0, 1.0, -1.0, 3.0, 7.0, 1e30, -1e30, 1e-30, np.nan, np.inf]),
        min_size=17,
        max_size=17,
    ),
    fill=st.sampled_from([0.0, -1.0, 1e-20, 1e30, np.nan, np.inf]),
)
def test_numbers_of_any_kind_give_finite_figures_or_none(numbers: list[float], fill: float) -> None:
    """Whatever comes off the wire: a refusal, or finite figures; no other error, no warning."""
    from dataclasses import replace

    from sidestep.proto import RemoteProtocolError

    good = moments_value(normal(3, 2, 4), paired=normal(3, 2, 4), extras={"koleo": 1.0})
    rest = [float32(np.full(array.shape, fill))[0] for array in good.arrays[1:]]
    try:
        moments = decode(replace(good, arrays=[*float32(numbers), *rest]))
    except RemoteProtocolError:
        return
    whole = spectrum(moments)
    found = figures(moments) | (whole.figures if whole else {})
    assert all(np.isfinite(value) for value in found.values())


def test_extras_pass_through_under_their_own_names() -> None:
    found = found_in(normal(8, 4), extras={"uniformity": -3.5, "koleo": float("nan")})
    assert found["uniformity"] == -3.5
    assert "koleo" not in found


# --- invariance ----------------------------------------------------------------------------------

BLIND_TO_ROTATION = [
    *("norm_cv", "variance_share", "cosine", "share_image", "share_position", "share_residual"),
    *("pr_images", "rank", "rank_fraction", "pr", "nesum", "entropy_rank", "alpha", "condition"),
]
BLIND_TO_SCALE = [*BLIND_TO_ROTATION, "std_normalized", "dead_fraction"]


@settings(max_examples=15, deadline=None)
@given(exponent=st.integers(-20, 20), seed=st.integers(0, 1000))
def test_scale_changes_none_of_these(exponent: int, seed: int) -> None:
    x = normal(12, 5, 20, seed=seed) + 1
    one, other = found_in(x), found_in(x * 2.0**exponent)  # exact in float32
    for name in BLIND_TO_SCALE:
        assert other[name] == pytest.approx(one[name], rel=1e-9, abs=1e-12), name


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_rotation_changes_none_of_these(seed: int) -> None:
    x = normal(12, 5, 20, seed=seed) + 1
    turn, _ = np.linalg.qr(normal(20, 20, seed=seed + 1))
    one, other = found_in(x), found_in(x @ turn)
    for name in ["norm", *BLIND_TO_ROTATION]:
        assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name

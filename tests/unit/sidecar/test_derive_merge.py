"""Moments of parts, merged, are those of the concatenated batch."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sidestep.sidecar.derive.additive import Moments, merge
from sidestep.sidecar.derive.decode import decode
from sidestep.sidecar.derive.figures import figures
from sidestep.sidecar.derive.spectrum import spectrum
from tests.support.moments import moments_value


def all_figures(moments: Moments) -> dict[str, float]:
    """With those of the spectrum, when there are Gram matrices."""
    whole = spectrum(moments)
    return figures(moments) | (whole.figures if whole is not None else {})


def parts(x: Any, cuts: list[int], **options: Any) -> list[Moments]:
    """The moments of consecutive parts of `x`; arrays among the options are cut as well."""
    bounds = [0, *cuts, len(x)]
    return [
        decode(
            moments_value(
                x[a:b],
                **{k: v[a:b] if isinstance(v, np.ndarray) else v for k, v in options.items()},
            )
        )
        for a, b in pairwise(bounds)
    ]


def same(found: dict[str, float], expected: dict[str, float], but: tuple[str, ...] = ()) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name not in but:
            assert found[name] == pytest.approx(value, rel=5e-5, abs=5e-6), name


@st.composite
def batches(draw: st.DrawFn) -> tuple[Any, list[int]]:
    """(B, D) or (B, N, D) with a mean, and where it is cut."""
    b, tokens, d = (
        draw(st.integers(4, 24)),
        draw(st.sampled_from([0, 1, 2, 5])),
        draw(st.integers(1, 9)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (b, tokens, d) if tokens else (b, d)
    x = rng.normal(size=shape) + draw(st.sampled_from([0.0, 1.0, 20.0]))
    # What separates the parts.
    x += np.linspace(0, 2, b).reshape(b, *[1] * (len(shape) - 1))
    cuts = draw(st.sets(st.integers(1, b - 1), max_size=3))
    return x, sorted(cuts)


@settings(max_examples=120, deadline=None)
@given(batch=batches())
def test_merged_is_concatenated(batch: tuple[Any, list[int]]) -> None:
    x, cuts = batch
    y = x[..., ::-1] * 1.5
    positions = np.arange(len(x)) % (x.shape[1] if x.ndim == 3 else 1)
    together = reduce(merge, parts(x, cuts, paired=y, positions=positions, shares=x.ndim == 3))
    (whole,) = parts(x, [], paired=y, positions=positions, shares=x.ndim == 3)
    found, expected = all_figures(together), all_figures(whole)
    # Ill-conditioned spectra move with float32's rounding.
    same(found, expected, but=("condition", "alpha", "rank", "rank_fraction"))
    if whole.gram is not None and together.gram is not None:
        scale = np.abs(whole.gram).max()
        np.testing.assert_allclose(together.gram, whole.gram, rtol=1e-5, atol=1e-5 * scale)


@settings(max_examples=40, deadline=None)
@given(batch=batches(), seed=st.integers(0, 100))
def test_the_order_does_not_matter(batch: tuple[Any, list[int]], seed: int) -> None:
    x, cuts = batch
    found = parts(x, cuts)
    shuffled = [found[i] for i in np.random.default_rng(seed).permutation(len(found))]
    same(
        all_figures(reduce(merge, shuffled)), all_figures(reduce(merge, found)), but=("condition",)
    )


def test_a_large_well_conditioned_batch_to_the_last_figure() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(64, 6, 32)) + rng.normal(size=(1, 6, 32)) + 10
    positions = np.arange(64) % 6
    together = reduce(merge, parts(x, [10, 30, 40], positions=positions))
    (whole,) = parts(x, [], positions=positions)
    same(all_figures(together), all_figures(whole))


def test_a_small_spread_beside_a_large_mean_survives() -> None:
    x = np.random.default_rng(6).normal(size=(400, 8)) + 1e4
    together = reduce(merge, parts(x, [100, 200, 300], due=False))
    assert figures(together)["std"] == pytest.approx(x.std(axis=0, ddof=1).mean(), rel=1e-4)


def test_a_part_without_rows_changes_nothing_but_counts() -> None:
    x = np.random.default_rng(7).normal(size=(9, 4, 5))
    (whole,) = parts(x, [], extras={"koleo": 1.0}, loss=2.0)
    (nothing,) = parts(np.full_like(x, np.nan), [], extras={"koleo": 5.0}, loss=float("nan"))
    for found in (all_figures(merge(whole, nothing)), all_figures(merge(nothing, whole))):
        assert (found.pop("nonfinite"), found.pop("n_images")) == (180, 18)
        assert found == {
            k: v for k, v in all_figures(whole).items() if k not in ("nonfinite", "n_images")
        }


def test_what_is_not_additive_is_averaged_over_rows() -> None:
    x = np.random.default_rng(8).normal(size=(40, 5))
    (a,) = parts(x[:10], [], extras={"koleo": 1.0, "uniformity": -2.0}, loss=4.0)
    (b,) = parts(x[10:], [], extras={"koleo": 2.0}, loss=8.0)
    found = figures(merge(a, b))
    assert found["koleo"] == pytest.approx(1.75)
    assert found["loss"] == pytest.approx(7.0)
    assert found["uniformity"] == -2.0  # of those that have it


# --- where the whole cannot be had ---------------------------------------------------------------


def test_only_traces_crossed() -> None:
    """The mean of unbiased estimates: of eight parts of white noise as near as of all rows."""
    x = np.random.default_rng(9).normal(size=(512, 3, 64))
    found = parts(x, list(range(64, 512, 64)), due=False)
    merged = figures(reduce(merge, found))["pr_images"]
    assert merged == pytest.approx(64, abs=2)
    alone = [figures(part)["pr_images"] for part in found]
    assert np.std(alone) > 3 * abs(merged - 64)
    # By its definition: tr C and tr C² estimated in each part, then their means.
    traces, squares = [], []
    for part in found:
        traces.append(part.images.trace.value)
        squares.append(part.images.square.value)
    assert merged == pytest.approx(np.mean(traces) ** 2 / np.mean(squares), rel=1e-12)


def test_parts_too_small_for_an_estimate_have_no_weight() -> None:
    x = np.random.default_rng(10).normal(size=(66, 3, 8))
    large, small = parts(x, [64], due=False)
    merged = merge(large, small)
    assert figures(merged)["pr_images"] == figures(large)["pr_images"]
    assert figures(merged)["n_image_tokens"] == 66
    assert "pr_images" not in figures(merge(small, small))


def test_a_gram_matrix_of_one_part_alone_is_none_of_the_whole() -> None:
    x = np.random.default_rng(11).normal(size=(40, 6))
    (a,), (b,) = parts(x[:20], []), parts(x[20:], [], due=False)
    for merged in (merge(a, b), merge(b, a)):
        assert merged.gram is merged.images.gram is None
        assert spectrum(merged) is None
        assert figures(merged)["pr_images"] > 0


def test_shares_without_position_means_keep_image_and_total_exact() -> None:
    rng = np.random.default_rng(12)
    x = (
        rng.normal(size=(40, 8, 6))
        + rng.normal(size=(1, 8, 6))
        + np.linspace(0, 3, 40)[:, None, None]
    )
    together = figures(reduce(merge, parts(x, [20], due=False)))
    (whole,) = parts(x, [], due=False)
    expected = figures(whole)
    assert together["share_image"] == pytest.approx(expected["share_image"], rel=1e-5)
    # Each part overestimates the position's share by about 1/B of the residual.
    assert together["share_position"] >= expected["share_position"] - 1e-6
    assert together["share_position"] == pytest.approx(
        expected["share_position"] + expected["share_residual"] / 40, abs=0.01
    )


def test_other_positions_or_pairs_or_views_are_left_out() -> None:
    rng = np.random.default_rng(13)
    (a,) = parts(rng.normal(size=(8, 4, 5)), [], paired=rng.normal(size=(8, 4, 5)))
    (b,) = parts(rng.normal(size=(8, 3, 5)), [])
    found = figures(merge(a, b))
    assert not {"share_image", "target_cosine"} & found.keys()
    assert found["n_rows"] == 56


def test_scatters_are_pooled() -> None:
    eye = np.eye(3)
    (a,), (b,) = (
        parts(
            np.random.default_rng(k).normal(size=(8, 3)),
            [],
            extras={"lidar": 8.0},
            scatter=(4, eye * k, eye),
        )
        for k in (1, 2)
    )
    merged = merge(a, b).scatter
    assert merged is not None
    assert (merged.n, merged.freedom, merged.views) == (16, 14, 4)
    np.testing.assert_array_equal(merged.between, eye * 3)
    (c,) = parts(np.zeros((8, 3)), [], extras={"lidar": 8.0}, scatter=(2, eye, eye))
    assert merge(a, c).scatter is None


def test_other_dimensions_cannot_be_merged() -> None:
    (a,), (b,) = parts(np.zeros((4, 3)), []), parts(np.zeros((4, 2)), [])
    with pytest.raises(ValueError, match="3 and 2 dimensions"):
        merge(a, b)

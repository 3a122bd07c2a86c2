"""The moments of a representation are those of an independent float64 reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sidestep.client.statistics import Plan, drawn_positions, moments, seed_of
from sidestep.client.statistics.masked import gram, rows_of
from tests.unit.client.representations import check, core, emitted, pr, reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def low_rank(rows: int, d: int, rank: int) -> torch.Tensor:
    return torch.randn(rows, rank) @ torch.randn(rank, d)


def power_law(rows: int, d: int) -> torch.Tensor:
    return torch.randn(rows, d) * torch.arange(1, d + 1).float().pow(-0.5)


# --- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(64, 32), (32, 64), (16, 8, 32), (4, 8, 96), (2, 5), (2, 1, 5), (1, 7, 3), (9, 1), (3, 2, 1)],
    ids=str,
)
def test_all_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (torch.randn(shape) + 0.3).to(dtype)
    y = (x + 0.1 * torch.randn(shape).to(dtype)).to(dtype)
    found = emitted(x, paired=y, loss=0.25)
    assert found["loss"] == 0.25
    expected = reference(x.double().numpy(), y.double().numpy())
    check(found, {**expected, "loss": 0.25})


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: low_rank(256, 96, 8), id="rank 8"),
        pytest.param(lambda: low_rank(128, 64, 1), id="rank 1"),
        pytest.param(lambda: power_law(300, 128), id="power law"),
        pytest.param(lambda: torch.randn(512, 16) + 1000, id="mean 1000"),
        pytest.param(lambda: torch.randn(32, 16, 24) * 1e-3 + 1, id="mean 1000, tokens"),
        pytest.param(lambda: torch.randn(64, 16) * 1e-8, id="tiny"),
        pytest.param(lambda: torch.randn(64, 16) * 1e6, id="huge"),
        pytest.param(lambda: torch.randn(64, 16, dtype=torch.float64) + 1e9, id="float64 mean 1e9"),
        pytest.param(lambda: torch.randn(256, 16).mul(1e-8).to(torch.bfloat16), id="tiny bfloat16"),
        pytest.param(lambda: torch.randn(64, 16) * (torch.rand(64, 1) < 0.5), id="zero rows"),
        pytest.param(lambda: torch.randn(64, 16) * torch.arange(16), id="a dead dimension"),
    ],
)
def test_all_kinds_of_spectra(make: Callable[[], torch.Tensor]) -> None:
    x = make()
    found, expected = emitted(x), reference(x.double().numpy())
    # Norms of a float64 input are float32's, like everything else that is not centred.
    if x.dtype is torch.float64:
        del expected["norm_m2"], expected["unit_m2"]
        found.arrays.pop("norm_m2"), found.arrays.pop("unit_m2")
    check(found, expected, rtol=1e-4)


def test_the_participation_ratio_of_low_rank_survives_float32() -> None:
    found = emitted(low_rank(256, 96, 8) + 50)
    ratio = found["trace"] ** 2 / found["square"]
    exact = np.linalg.eigvalsh(found["gram"])
    assert ratio == pytest.approx(exact.sum() ** 2 / (exact**2).sum(), rel=1e-4)
    assert ratio < 8.001


def test_white_noise_reads_its_dimension() -> None:
    # White, D = 768, n = 256: 768 ± 10.
    found = emitted(torch.randn(256, 768))
    assert pr(found["trace"], found["square"], 256) == pytest.approx(768, abs=30)


def test_images_are_seen_through_their_tokens() -> None:
    # 80 % of the variance between images of a true participation ratio of 96: all rows of few
    # images see these few alone; one token of each image sees them all.
    x = torch.randn(200, 1, 96) * 2 + torch.randn(200, 49, 96)
    found = emitted(x, max_rows=20 * 49)
    assert (found.info["images"], found["n_images"]) == (20, 200)
    few = pr(np.trace(found["gram"]), (found["gram"] ** 2).sum(), 20 * 49)
    assert few < 40
    assert pr(found["trace"], found["square"], 200) == pytest.approx(96, rel=0.1)


# --- constant, one of a kind -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(64, 8), (4096, 8), (37, 11, 8)], ids=str)
@pytest.mark.parametrize("size", [0.1, 1e-6, 37.7, 0.0])
def test_identical_rows_have_no_spread_at_all(
    shape: tuple[int, ...], dtype: torch.dtype, size: float
) -> None:
    x = (torch.randn(shape[-1]) * size).to(dtype).expand(shape)
    found = emitted(x)
    for name in ("m2", "gram", "trace", "square", "unit_m2", "norm_m2"):
        assert not np.any(found[name]), name
    np.testing.assert_allclose(found["mean"], x.double()[0].reshape(-1, 8)[0], rtol=3e-7)
    if len(shape) == 3:
        assert found["ss_image"] == found["ss_position"] == found["ss_total"] == 0


def test_the_least_spread_that_float32_has_is_seen() -> None:
    x = torch.ones(64, 4)
    x[::2, 1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    found = emitted(x)
    assert found["m2"][[0, 2, 3]].tolist() == [0, 0, 0]
    assert found["m2"][1] == pytest.approx(64 * 2.0**-48, rel=1e-3)


def test_what_float32_cannot_hold_is_not_told() -> None:
    tiny = emitted(torch.randn(64, 4) * 1e-25)
    assert np.isnan(tiny["m2"]).all()
    assert np.isnan(tiny["trace"])
    assert np.isnan(tiny["square"])
    huge = emitted(torch.randn(64, 4) * 1e30)
    assert np.isnan(huge["m2"]).all()
    assert np.isnan(huge["square"])
    middling = emitted(torch.randn(64, 4) * 1e12)
    assert np.isnan(middling["square"])
    assert np.isfinite(middling["trace"])


# --- non-finite --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(32, 8), (16, 8, 8)], ids=str)
def test_rows_with_a_non_finite_element_are_left_out(shape: tuple[int, ...], bad: float) -> None:
    x, y = torch.randn(shape), torch.randn(shape)
    x[3, ..., 2] = bad
    x[3, ..., 5] = bad
    x.view(-1, 8)[-2, 0] = bad
    y.view(-1, 8)[0, 1] = bad
    expected = reference(x.double().numpy(), y.double().numpy())
    check(emitted(x, paired=y), expected)


def test_nothing_but_non_finite_rows() -> None:
    found = emitted(torch.full((8, 4, 3), math.nan))
    assert (found["n"], found["nonfinite"], found["n_images"], found["n_unit"]) == (0, 96, 0, 0)
    assert np.isnan(found["mean"]).all()
    assert np.isnan(found["norm_mean"])
    assert np.isnan(found["ss_total"])


def test_one_finite_row_and_one_finite_image() -> None:
    x = torch.full((4, 2, 3), math.nan)
    x[1, 0] = torch.tensor([1.0, 2.0, 2.0])
    found = emitted(x)
    assert (found["n"], found["norm_mean"], found["norm_m2"]) == (1, 3, 0)
    assert found["m2"].tolist() == [0, 0, 0]
    x[1, 1] = torch.tensor([4.0, 4.0, 2.0])
    found = emitted(x)
    assert (found["n"], found["norm_mean"], found["norm_m2"]) == (2, 4.5, 4.5)
    assert np.isnan([found["ss_image"], found["ss_position"], found["ss_total"]]).all()


# --- invariances -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(exponent=st.integers(-20, 12), seed=st.integers(0, 1000))
def test_scale_changes_nothing_but_the_scale(exponent: int, seed: int) -> None:
    x = torch.randn(12, 4, 24, generator=torch.Generator().manual_seed(seed)) + 0.5
    one, other = emitted(x), emitted(x * 2.0**exponent)
    for name, power in [("mean", 1), ("m2", 2), ("gram", 2), ("trace", 2), ("ss_image", 2)]:
        np.testing.assert_array_equal(other[name], one[name] * 2.0 ** (power * exponent))
    np.testing.assert_allclose(other["square"], one["square"] * 2.0 ** (4 * exponent), rtol=1e-5)
    np.testing.assert_allclose(other["unit_m2"], one["unit_m2"], rtol=1e-5)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000))
def test_rotation_changes_only_the_axes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 4, 24, generator=generator, dtype=torch.float64) + 0.5
    q, _ = torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64))
    one, other = emitted(x, paired=x.flip(0)), emitted(x @ q, paired=x.flip(0) @ q)
    rotation = q.numpy()
    np.testing.assert_allclose(other["gram"], rotation.T @ one["gram"] @ rotation, atol=2e-4)
    for name in ("trace", "square", "ss_image", "ss_position", "cosines", "distances", "target_m2"):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-4, err_msg=name)
    assert other["unit_m2"].sum() == pytest.approx(one["unit_m2"].sum(), rel=1e-5)


def test_permuted_images_are_the_same() -> None:
    x = torch.randn(64, 24)
    one, other = emitted(x), emitted(x[torch.randperm(64)])
    for name in ("mean", "m2", "gram", "trace", "square", "unit_sum", "norm_m2"):
        np.testing.assert_allclose(other[name], one[name], rtol=1e-4, atol=1e-4)


# --- products in fast formats ------------------------------------------------------------------


def rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    """`x` with so many bits of mantissa, as the unit that multiplies would take it."""
    drop = 23 - bits
    return (x.view(torch.int32) + (1 << (drop - 1)) >> drop << drop).view(torch.float32)


class FastMatrix(torch.Tensor):
    """A tensor whose float32 products are computed in a shorter format."""

    bits = 10

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if function in (torch.Tensor.matmul, torch.Tensor.__matmul__):
            plain = [a.as_subclass(torch.Tensor).contiguous() for a in args]
            return (rounded(plain[0], cls.bits) @ rounded(plain[1], cls.bits)).as_subclass(cls)
        return super().__torch_function__(function, types, args, kwargs)


class Bfloat16Matrix(FastMatrix):
    bits = 7


@pytest.mark.parametrize(("kind", "tolerance"), [(FastMatrix, 2e-6), (Bfloat16Matrix, 1e-5)])
def test_fast_products_do_not_reach_the_gram_matrix(
    kind: type[torch.Tensor], tolerance: float
) -> None:
    x = power_law(300, 64)
    fast = x.as_subclass(kind)
    exact = (x.double().T @ x.double()).numpy()
    plain = (fast.T @ fast).as_subclass(torch.Tensor).double().numpy()
    found = gram(fast).as_subclass(torch.Tensor).double().numpy()
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert (
        np.abs(plain - exact).max() > 10 * tolerance * scale.max()
    )  # the stand-in does what it says
    assert (np.abs(found - exact) / scale).max() < tolerance
    np.testing.assert_allclose(np.diag(found), np.diag(exact), rtol=tolerance)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_the_switch_is_left_as_it_is(precision: str) -> None:
    x = torch.randn(128, 32)
    before = torch.get_float32_matmul_precision()
    exact = emitted(x)
    try:
        torch.set_float32_matmul_precision(precision)
        found = emitted(x)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_allclose(found["gram"], exact["gram"], atol=2e-5 * exact["gram"].max())


# --- draws -------------------------------------------------------------------------------------


def test_positions_are_uniform_and_differ_between_images_and_steps() -> None:
    drawn = [drawn_positions(4096, 196, seed_of(step), "cpu") for step in (0, 1, 2**40, -5)]
    for one in drawn:
        counts = torch.bincount(one, minlength=196).double()
        assert counts.sum() == 4096
        chi_squared = ((counts - 4096 / 196) ** 2 / (4096 / 196)).sum()
        assert 120 < chi_squared < 290  # 195 ± 20, five standard deviations
        assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.08
    for one, other in [(0, 1), (0, 2), (1, 3)]:
        assert (drawn[one] == drawn[other]).double().mean() < 0.02
    again = drawn_positions(4096, 196, seed_of(1), "cpu")
    assert torch.equal(again, drawn[1])


def test_positions_are_what_they_have_always_been() -> None:
    # The same on every device and in every version, or traces could not be compared.
    assert drawn_positions(8, 196, seed_of(1000), "cpu").tolist() == EXPECTED_POSITIONS


EXPECTED_POSITIONS = [81, 126, 172, 173, 12, 186, 88, 34]


# --- the core itself ---------------------------------------------------------------------------


def test_the_core_is_what_the_value_calls() -> None:
    x = torch.randn(6, 5, 8)
    found = emitted(x, step=3)
    scalars = core(x, step=3)[0].double().numpy()
    assert scalars[7] == found["square"]


def test_without_the_spectrum_the_rest_is_the_same() -> None:
    x = torch.randn(40, 6, 20)
    due, undue = core(x), core(x, due=False)
    assert (len(due), len(undue)) == (9, 5)
    torch.testing.assert_close(due[0], undue[0], rtol=1e-5, atol=0, equal_nan=True)
    for one, other in zip(due[1:5], undue[1:], strict=True):
        assert torch.equal(one, other)


def test_the_input_is_not_changed() -> None:
    x = torch.randn(8, 4)
    before = x.clone()
    moments(x.unsqueeze(1), None, x.unsqueeze(1), plan=Plan(due=True))
    assert torch.equal(x, before)
    assert rows_of(x).count == 8

"""RankMe and the participation ratio against closed forms and an SVD in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sidestep.sidecar.derive.spectrum import Matrix, participation_ratio, rankme


def _moments(x: Matrix) -> tuple[Matrix, Matrix, int]:
    mean = x.mean(axis=0)
    centred = x - mean
    return mean, centred.T @ centred, len(x)


def _rankme_by_svd(x: Matrix) -> float:
    sigma = np.linalg.svd(x, compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize(
    ("n", "d", "shift"), [(64, 16, 0.0), (16, 64, 0.0), (200, 32, 5.0), (2, 5, 1.0), (50, 1, 0.3)]
)
def test_rankme_is_that_of_the_singular_values(n: int, d: int, shift: float) -> None:
    x = np.random.default_rng(n * d).normal(size=(n, d)) + shift
    assert rankme(*_moments(x)) == pytest.approx(_rankme_by_svd(x), rel=1e-4)


def test_rankme_of_a_large_gaussian_is_the_published_figure() -> None:
    x = np.random.default_rng(0).normal(size=(8192, 768))
    assert rankme(*_moments(x)) == pytest.approx(759.1, abs=0.2)
    assert rankme(*_moments(x + 5.0)) == pytest.approx(418.5, abs=1.0)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_k_equal_singular_values_have_rank_k(k: int) -> None:
    q, _ = np.linalg.qr(np.random.default_rng(k).normal(size=(40, k)))
    x = np.zeros((40, 12))
    x[:, :k] = q - q.mean(axis=0)
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    equal = (u[:, :k] @ vt[:k]) * 2.5
    assert rankme(*_moments(equal)) == pytest.approx(k, rel=1e-4)


def test_zero_and_non_finite_have_no_rank() -> None:
    assert rankme(np.zeros(4), np.zeros((4, 4)), 10) is None
    assert rankme(np.zeros(4), np.full((4, 4), np.nan), 10) is None


def test_participation_ratio_of_white_noise_is_its_dimension_despite_few_rows() -> None:
    rng = np.random.default_rng(1)
    found = [participation_ratio(*_moments(rng.normal(size=(256, 768)))[1:]) for _ in range(3)]
    assert np.mean([f for f in found if f is not None]) == pytest.approx(768, abs=10)


def test_participation_ratio_of_rank_8_is_8() -> None:
    rng = np.random.default_rng(2)
    basis, _ = np.linalg.qr(rng.normal(size=(64, 8)))
    x = rng.normal(size=(20000, 8)) @ basis.T
    assert participation_ratio(*_moments(x)[1:]) == pytest.approx(8.0, abs=0.02)


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**16))
@settings(max_examples=25)
def test_both_are_invariant_to_scale(scale: float, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(60, 12))
    _, gram, n = _moments(x)
    assert participation_ratio(gram * scale**2, n) == pytest.approx(participation_ratio(gram, n))
    assert rankme(*_moments(x * scale)) == pytest.approx(rankme(*_moments(x)), rel=1e-6)


def test_undefined_participation_ratios_are_absent() -> None:
    assert participation_ratio(np.eye(3), 2) is None  # one degree of freedom
    assert participation_ratio(np.zeros((3, 3)), 50) is None  # no variance
    assert participation_ratio(np.full((3, 3), np.inf), 50) is None

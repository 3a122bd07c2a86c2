"""Figures of the spectrum against closed forms, published values and decompositions of the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sidestep.sidecar.derive.additive import Floats, Scatter
from sidestep.sidecar.derive.decode import decode
from sidestep.sidecar.derive.figures import figures, lidar
from sidestep.sidecar.derive.spectrum import (
    alpha,
    condition,
    entropy_rank,
    nesum,
    numerical_rank,
    participation_ratio,
    rankme,
    spectrum,
)
from tests.support.moments import gram, moments_value
from tests.support.representations import covariance_eigenvalues, singular_rank

RNG = np.random.default_rng(11)


def spectrum_of(x: Any) -> dict[str, float]:
    """As it comes off the wire: from float32 Gram matrices."""
    found = spectrum(decode(moments_value(np.asarray(x, np.float64))))
    return {} if found is None else found.figures


def with_spectrum(eigenvalues: Floats, n: int) -> Any:
    """n centred rows whose covariance has exactly these eigenvalues, in some rotation."""
    d = len(eigenvalues)
    q, _ = np.linalg.qr(RNG.normal(size=(n, d)))
    q -= q.mean(axis=0)
    q, _ = np.linalg.qr(q)
    turn, _ = np.linalg.qr(RNG.normal(size=(d, d)))
    return q * np.sqrt(eigenvalues * (n - 1)) @ turn


def gram_of_rows(x: Any) -> Any:
    """n×n, centred: its non-zero eigenvalues are those of the D×D one."""
    centred = x - x.mean(axis=0)
    return centred @ centred.T


# --- published and stated values ----------------------------------------------------------------


def test_a_large_gaussian() -> None:
    x = np.random.default_rng(0).normal(size=(8192, 768))
    moments = decode(moments_value(x))
    whole = spectrum(moments)
    assert whole is not None
    assert moments.gram is not None
    found = whole.figures
    assert found["rank"] == pytest.approx(759.1, abs=0.1)
    assert found["rank_fraction"] == pytest.approx(759.1 / 768, abs=2e-4)
    assert found["entropy_rank"] == pytest.approx(732.9, abs=0.5)
    assert found["pr"] == pytest.approx(768, abs=2)
    # Undebiased, of the same covariance.
    p = whole.eigenvalues
    assert p.sum() ** 2 / (p * p).sum() == pytest.approx(702.0, abs=1)
    # Beside a mean; the other figures are centred, and do not know it.
    assert rankme(moments.rows.mean + 5, moments.gram, 8192) == pytest.approx(418.5, abs=0.5)


def test_few_rows_of_white_noise() -> None:
    debiased, biased = [], []
    for seed in range(4):
        x = np.random.default_rng(seed).normal(size=(256, 768))
        found = figures(decode(moments_value(x, due=False)))
        debiased.append(found["pr_images"])
        small = gram_of_rows(x)
        biased.append(np.trace(small) ** 2 / np.square(small).sum())
    assert np.mean(debiased) == pytest.approx(768, abs=10)
    assert np.mean(biased) == pytest.approx(191, abs=1)


def test_rank_8() -> None:
    basis, _ = np.linalg.qr(RNG.normal(size=(64, 8)))
    x = with_spectrum(np.ones(8), 5000) @ basis.T
    assert spectrum_of(x)["pr"] == pytest.approx(8.0, abs=0.02)
    assert spectrum_of(x)["nesum"] == pytest.approx(8.0, abs=1e-3)
    assert spectrum_of(x)["entropy_rank"] == pytest.approx(8.0, abs=1e-3)
    assert spectrum_of(x)["condition"] == pytest.approx(1.0, abs=1e-3)
    assert rankme(np.zeros(64), gram(x), len(x)) == pytest.approx(8.0, abs=1e-3)
    assert "alpha" not in spectrum_of(x)  # nothing but float32's noise beyond the eighth


@pytest.mark.parametrize("k", [1, 3, 8])
def test_k_equal_singular_values_have_rank_k(k: int) -> None:
    x = with_spectrum(np.ones(k), 40) @ np.eye(k, 12)
    assert rankme(np.zeros(12), gram(x), 40) == pytest.approx(k, rel=1e-4)


def test_a_harmonic_spectrum() -> None:
    eigenvalues = np.arange(1, 769) ** -1.0
    assert nesum(eigenvalues) == pytest.approx(7.22, abs=0.005)
    assert condition(eigenvalues, 768) == pytest.approx(768)
    found = spectrum_of(with_spectrum(eigenvalues[:128], 256))
    assert found["nesum"] == pytest.approx(eigenvalues[:128].sum(), rel=1e-5)
    assert found["alpha"] == pytest.approx(1, abs=1e-3)
    assert found["condition"] == pytest.approx(128, rel=1e-3)


@pytest.mark.parametrize("a", [0.25, 1.0, 1.7, 2.5])
def test_alpha_is_the_power(a: float) -> None:
    assert alpha(np.arange(1, 769) ** -a, 768) == pytest.approx(a, abs=1e-9)
    found = spectrum_of(with_spectrum(np.arange(1, 129) ** -a, 300))
    assert found["alpha"] == pytest.approx(a, rel=0.02)  # the last of them are near the noise


def test_alpha_is_of_the_6th_to_the_100th() -> None:
    eigenvalues = np.arange(1, 769) ** -1.0
    eigenvalues[:5] *= 100
    eigenvalues[100:] *= 0.01
    assert alpha(eigenvalues, 768) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("count", "there"), [(14, False), (15, True)])
def test_alpha_needs_ten_eigenvalues(count: int, there: bool) -> None:
    assert (alpha(np.arange(1, count + 1) ** -1.0, count) is not None) is there


def test_numerical_rank_leaves_out_what_float32_cannot_tell() -> None:
    eigenvalues = np.array([1.0, 1e-3, 1e-4, 1e-9])
    assert numerical_rank(eigenvalues, 4) == 3
    assert numerical_rank(eigenvalues, 1000) == 2
    assert condition(eigenvalues, 4) == pytest.approx(1e4)
    assert numerical_rank(np.zeros(3), 3) == 0
    assert condition(np.zeros(3), 3) is nesum(np.zeros(3)) is entropy_rank(np.zeros(3)) is None


@pytest.mark.parametrize(
    ("n", "d", "shift"), [(64, 16, 0.0), (16, 64, 0.0), (200, 32, 5.0), (2, 5, 1.0), (50, 1, 0.3)]
)
def test_rankme_is_that_of_the_singular_values(n: int, d: int, shift: float) -> None:
    x = np.random.default_rng(n * d).normal(size=(n, d)) + shift
    assert rankme(x.mean(axis=0), gram(x), n) == pytest.approx(singular_rank(x), rel=1e-4)


# --- what is undefined --------------------------------------------------------------------------


def test_zero_and_non_finite_have_no_figures() -> None:
    assert rankme(np.zeros(4), np.zeros((4, 4)), 10) is None
    assert rankme(np.zeros(4), np.full((4, 4), np.nan), 10) is None
    assert participation_ratio(np.eye(3), 2) is None  # one degree of freedom
    assert participation_ratio(np.zeros((3, 3)), 50) is None  # no variance
    assert participation_ratio(np.full((3, 3), np.inf), 50) is None
    assert spectrum_of(np.full((5, 3), np.inf)) == {}
    assert spectrum_of(np.ones((1, 3))) == {}
    assert spectrum(decode(moments_value(RNG.normal(size=(9, 3)), due=False))) is None


def test_few_rows_bound_the_eigenvalues() -> None:
    found = spectrum(decode(moments_value(RNG.normal(size=(5, 40)))))
    assert found is not None
    assert found.eigenvalues.shape == (4,)
    assert (np.diff(found.eigenvalues) <= 0).all()


def test_eigenvalues_are_those_of_the_covariance() -> None:
    x = RNG.normal(size=(90, 12)) * np.arange(1, 13) + 40
    found = spectrum(decode(moments_value(x)))
    assert found is not None
    np.testing.assert_allclose(found.eigenvalues, covariance_eigenvalues(x), rtol=1e-5)


# --- LiDAR ---------------------------------------------------------------------------------------


def scatter_of(views: Any) -> Scatter:
    """Of (V, B, D)."""
    v, b, _ = views.shape
    means = views.mean(axis=0)
    apart = (views - means).reshape(v * b, -1)
    return Scatter(b, b - 1, v, gram(means), apart.T @ apart)


def test_lidar_is_that_of_its_definition() -> None:
    views = RNG.normal(size=(1, 60, 6)) * 2 + 0.3 * RNG.normal(size=(5, 60, 6))
    between = np.cov(views.mean(axis=0), rowvar=False)
    within = sum(np.cov(views[:, i], rowvar=False) for i in range(60)) / 60 + 1e-4 * np.eye(6)
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(root @ between @ root)
    p = eigenvalues / eigenvalues.sum() + 1e-7
    assert lidar(scatter_of(views)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)


@pytest.mark.parametrize("k", [1, 4])
def test_lidar_counts_the_directions_that_tell_images_apart(k: int) -> None:
    images = with_spectrum(np.ones(k), 1000) @ np.eye(k, 12)
    views = images[None] + 0.01 * RNG.normal(size=(4, 1000, 12))
    assert lidar(scatter_of(views)) == pytest.approx(k, rel=0.05)


def test_lidar_off_the_wire() -> None:
    views = RNG.normal(size=(3, 20, 5)) + 2 * RNG.normal(size=(1, 20, 5))
    scatter = scatter_of(views)
    value = moments_value(
        views[0], extras={"lidar": 20.0}, scatter=(3, scatter.between, scatter.within)
    )
    found = figures(decode(value))
    assert found["lidar"] == pytest.approx(lidar(scatter), rel=1e-5)
    value = moments_value(
        views[0], extras={"lidar": 20.0}, scatter=(3, scatter.between, scatter.within), due=False
    )
    assert "lidar" not in figures(decode(value))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e9])
def test_lidar_of_what_is_no_scatter_is_absent(bad: float) -> None:
    assert np.isnan(lidar(Scatter(9, 8, 3, np.eye(3), np.full((3, 3), bad))))
    assert np.isnan(lidar(Scatter(9, 8, 1, np.eye(3), np.eye(3))))
    assert np.isnan(lidar(None))

"""The optional statistics are those of their papers: closed forms, and float64 loops over pairs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from sidestep.client.statistics import extras as extras_module
from sidestep.client.statistics.draws import directions
from tests.unit.client.representations import Floats, emitted, scatter


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def value(name: str, x: torch.Tensor, **options: Any) -> float:
    return float(emitted(x, extras=[name], **options)[name])


def units(x: torch.Tensor) -> Floats:
    rows = x.double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def distances(x: torch.Tensor) -> Floats:
    """‖zᵢ − zⱼ‖ (n, n) of the unit rows."""
    z = units(x)
    return np.linalg.norm(z[:, None] - z[None], axis=2)


# --- uniformity, KoLeo, alignment -----------------------------------------------------------------


def test_uniformity_is_that_of_the_paper() -> None:
    x = torch.randn(60, 5) + 0.5
    pairs = distances(x)[np.triu_indices(60, 1)]
    expected = math.log(np.exp(-2 * pairs**2).mean())
    assert value("uniformity", x) == pytest.approx(expected, rel=1e-5)


def test_uniformity_of_isotropic_and_of_identical_rows() -> None:
    d = 64
    assert value("uniformity", torch.randn(1024, d)) == pytest.approx(-4 + 8 / d, abs=0.02)
    assert value("uniformity", torch.ones(100, d)) == pytest.approx(0, abs=1e-5)


def test_koleo_is_that_of_dinov2() -> None:
    x = torch.randn(60, 5)
    apart = distances(x) + 10 * np.eye(60)
    expected = -np.log(apart.min(1) + 1e-8).mean()
    assert value("koleo", x) == pytest.approx(expected, rel=1e-5)


def test_koleo_of_close_rows_keeps_its_digits() -> None:
    x = torch.ones(32, 8) + 1e-5 * torch.randn(32, 8)
    apart = distances(x) + 10 * np.eye(32)
    # Which of them is the nearest may be mistaken; how far one is, is not.
    assert value("koleo", x) == pytest.approx(-np.log(apart.min(1) + 1e-8).mean(), abs=1)
    assert value("koleo", torch.ones(32, 8)) == pytest.approx(-math.log(1e-8), rel=1e-3)


def test_alignment() -> None:
    x, y = torch.randn(50, 6), torch.randn(50, 6)
    expected = ((units(x) - units(y)) ** 2).sum(1).mean()
    assert value("alignment", x, paired=y) == pytest.approx(expected, rel=1e-5)
    assert value("alignment", x, paired=3 * x) == pytest.approx(0, abs=1e-12)


# --- VICReg --------------------------------------------------------------------------------------


def test_vicreg_terms() -> None:
    x = torch.randn(80, 6) @ torch.randn(6, 6) * 0.4 + 3
    rows = x.double().numpy()
    covariance = np.cov(rows, rowvar=False)
    variance = np.maximum(0, 1 - np.sqrt(np.diag(covariance) + 1e-4)).mean()
    assert value("vicreg_variance", x) == pytest.approx(variance, rel=1e-4)
    off = covariance - np.diag(np.diag(covariance))
    assert value("vicreg_covariance", x) == pytest.approx((off**2).sum() / 6, rel=1e-4)
    assert value("vicreg_variance", torch.ones(9, 4)) == pytest.approx(0.99)
    assert value("vicreg_covariance", torch.ones(9, 4)) == 0


# --- SIGReg --------------------------------------------------------------------------------------


def test_sigreg_is_that_of_the_paper() -> None:
    x = torch.randn(40, 6) * 1.5 + 0.2
    found = emitted(x, extras=["sigreg"], step=0)["sigreg"]
    from sidestep.client.statistics import seed_of

    a = directions(6, 256, seed_of(0), "cpu").double().numpy()
    t = np.linspace(-5, 5, 17)
    normal = np.exp(-(t**2) / 2)
    sliced = x.double().numpy() @ a
    empirical = np.exp(1j * sliced[:, :, None] * t).mean(0)
    errors = np.abs(empirical - normal) ** 2 * normal
    assert found == pytest.approx(40 * np.trapezoid(errors, t, axis=1).mean(), rel=1e-4)


def test_sigreg_tells_a_normal_one_from_others() -> None:
    normal = value("sigreg", torch.randn(2048, 16))
    assert normal < 2.5  # for n → ∞, ∫ (1 − e^(−t²)) e^(−t²/2) dt = 1.06
    assert value("sigreg", 2 * torch.randn(2048, 16)) > 20 * normal
    assert value("sigreg", torch.zeros(2048, 16)) > 20 * normal


def test_directions_are_unit_vectors_all_over_the_sphere() -> None:
    a = directions(8, 4096, 7, "cpu").double()
    torch.testing.assert_close(
        a.norm(dim=0), torch.ones(4096, dtype=torch.float64), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(
        a @ a.T / 4096, torch.eye(8, dtype=torch.float64) / 8, rtol=0, atol=0.01
    )
    assert not torch.equal(directions(8, 4, 1, "cpu"), directions(8, 4, 2, "cpu"))


# --- LiDAR ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_the_scatter_of_lidar(mean: float) -> None:
    views = torch.randn(4, 1, 6) * 0.3 + torch.randn(1, 20, 6) + mean
    views = views + 0.1 * torch.randn(4, 20, 6)
    views[2, 5, 1] = math.nan
    found = emitted(torch.randn(8, 3), extras=["lidar"], views=views)
    good = np.delete(views.double().numpy(), 5, axis=1)
    means = good.mean(0)
    within = (good - means).reshape(-1, 6)
    assert (found["lidar"], found.info["views"]) == (19, 4)
    np.testing.assert_allclose(found["between"], scatter(means), atol=3e-4 * 19)
    np.testing.assert_allclose(found["within"], within.T @ within, atol=3e-4 * 19)


# --- all of them ---------------------------------------------------------------------------------

ALL = ["uniformity", "koleo", "alignment", "vicreg_variance", "vicreg_covariance", "sigreg"]


def test_rows_that_are_left_out_are_left_out_here_too() -> None:
    x, y = torch.randn(40, 6), torch.randn(40, 6)
    worse, other = x.clone(), y.clone()
    worse[[3, 17]] = math.nan
    keep = [i for i in range(40) if i not in (3, 17)]
    found = emitted(worse, paired=other, extras=ALL)
    expected = emitted(x[keep], paired=y[keep], extras=ALL)
    for name in ALL:
        assert found[name] == pytest.approx(expected[name], rel=1e-5), name


def test_without_two_rows_they_are_not_defined() -> None:
    x = torch.full((4, 3), math.nan)
    x[0] = 1.0
    found = emitted(x, paired=torch.full((4, 3), math.nan), extras=ALL)
    assert all(np.isnan(found[name]) for name in ALL)


def test_of_many_rows_some_are_looked_at_evenly_spaced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert extras_module.MAX_PAIRED_ROWS == 2048
    monkeypatch.setattr(extras_module, "MAX_PAIRED_ROWS", 64)
    x = torch.randn(128, 4)
    x[1::2] = 0  # not among the 64
    found = emitted(x, extras=["uniformity", "koleo", "sigreg"])
    expected = emitted(x[::2], extras=["uniformity", "koleo", "sigreg"])
    for name in ("uniformity", "koleo", "sigreg"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)

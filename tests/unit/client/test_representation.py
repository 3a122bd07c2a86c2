"""The moments of a representation are those of a float64 reference, whatever its dtype and size."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sidestep.client import InvalidValueError, Representation
from sidestep.client.representation import subsample
from sidestep.client.values import EmitContext


def prepare(x: Any, *, memory: dict[str, Any] | None = None, step: int = 0, **options: Any) -> Any:
    context = EmitContext(step, {} if memory is None else memory)
    return Representation(x, **options).prepare(context)


def reference(rows: np.ndarray) -> tuple[np.ndarray, float, float, np.ndarray]:
    """Mean, std, norm and centred Gram matrix in float64, as collapse statistics define them."""
    rows = rows.astype(np.float64)
    centred = rows - rows.mean(0)
    std = rows.std(0, ddof=1).mean()
    norm = np.linalg.norm(rows, axis=1).mean()
    return rows.mean(0), float(std), float(norm), centred.T @ centred


def check(x: torch.Tensor, rows: np.ndarray, tolerance: float = 1e-5) -> None:
    prepared = prepare(x)
    mean, cheap, gram = (array.double().numpy() for array in prepared.arrays)
    assert all(array.dtype is torch.float32 for array in prepared.arrays)
    expected_mean, std, norm, expected_gram = reference(rows)
    spread = max(std, 1e-30)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-6, atol=1e-5 * spread)
    np.testing.assert_allclose(cheap, [std, norm], rtol=tolerance)
    scale = np.abs(expected_gram).max()
    np.testing.assert_allclose(gram, expected_gram, rtol=tolerance, atol=tolerance * scale)
    assert prepared.info == {"n": len(rows), "images": len(x), "d": x.shape[-1]}
    assert prepared.kind == "moments"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 32), (16, 8, 32), (2, 5), (2, 1, 5), (1, 7, 3)])
def test_against_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    check(x, x.double().numpy().reshape(-1, shape[-1]))


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("mean", [0.0, 1e2, 1e4])
def test_a_small_spread_beside_a_large_mean(mean: float, spread: float) -> None:
    x = (torch.randn(512, 16, dtype=torch.float64) * spread + mean).float()
    check(x, x.double().numpy(), tolerance=1e-4)


def test_tiny_bfloat16_variances_do_not_read_zero() -> None:
    x = (torch.randn(256, 16) * 1e-8).bfloat16()
    _, cheap, gram = prepare(x).arrays
    assert cheap[0] > 5e-9
    assert gram.diagonal().min() > 0


def test_a_collapsed_representation_reads_zero() -> None:
    x = torch.ones(64, 8) * 0.1
    mean, cheap, gram = prepare(x).arrays
    assert cheap[0] < 1e-8
    assert gram.abs().max() < 1e-13
    np.testing.assert_allclose(mean.numpy(), 0.1, rtol=1e-6)


def test_it_takes_numpy_and_tensors_with_gradients() -> None:
    array = np.random.default_rng(0).normal(size=(32, 4))
    check(torch.from_numpy(array).float(), array)
    prepared = prepare(array)
    assert prepared.info["n"] == 32
    layer = torch.nn.Linear(4, 4)
    prepared = prepare(layer(torch.randn(8, 4)))
    assert not any(tensor.requires_grad for tensor in prepared.arrays)


def test_autocast_does_not_reach_it() -> None:
    x = torch.randn(512, 64) + 100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = prepare(x).arrays
    for one, other in zip(inside, prepare(x).arrays, strict=True):
        assert torch.equal(one, other)


def test_inference_mode_and_deterministic_input() -> None:
    with torch.inference_mode():
        x = torch.randn(16, 4)
        before = x.clone()
        prepare(x)
    assert torch.equal(x, before)  # and nothing is changed in place


def test_a_value_that_is_not_finite_stays_so() -> None:
    x = torch.randn(16, 4)
    x[3, 2] = float("nan")
    mean, cheap, _ = prepare(x).arrays
    assert mean.isnan().tolist() == [False, False, True, False]
    assert cheap.isnan().all()


# --- the spectrum is due -------------------------------------------------------------------------


def test_the_gram_matrix_crosses_once_in_so_many_steps() -> None:
    memory: dict[str, Any] = {}
    x = torch.randn(8, 4)
    crossed = [
        step
        for step in [0, 1, 199, 200, 399, 400, 5, 6]
        if len(prepare(x, memory=memory, step=step).arrays) == 3
    ]
    assert crossed == [0, 200, 400, 5]  # a step that goes back begins anew


def test_the_gram_matrix_can_cross_each_time() -> None:
    memory: dict[str, Any] = {}
    for step in range(3):
        prepared = prepare(torch.randn(8, 4), memory=memory, step=step, spectrum_every=1)
        assert len(prepared.arrays) == 3


# --- subsampling -------------------------------------------------------------------------------


@settings(deadline=None)
@given(b=st.integers(1, 40), n=st.integers(1, 40), max_rows=st.integers(2, 200))
def test_whole_images_evenly_spaced_then_tokens(b: int, n: int, max_rows: int) -> None:
    x = torch.arange(b * n, dtype=torch.float32).reshape(b, n, 1)
    rows, images = subsample(x, max_rows)
    taken = rows.reshape(images, -1).long()
    assert len(rows) <= max_rows
    assert len(rows) == images * taken.shape[1]
    which = taken // n
    assert (which == which[:, :1]).all()  # each group is of one image
    picked = which[:, 0].tolist()
    assert picked == sorted(set(picked))
    if b * n <= max_rows:
        assert (images, taken.shape[1]) == (b, n)  # everything
    if n <= max_rows:
        assert taken.shape[1] == n  # whole images
        assert images == min(b, max_rows // n)
    else:
        assert images == 1
        assert len(rows) > max_rows // 2
    gaps = {after - before for before, after in pairwise(picked)}
    assert len(gaps) <= 1


def test_subsampling_is_used_and_said() -> None:
    prepared = prepare(torch.randn(100, 10, 4), max_rows=50)
    assert prepared.info == {"n": 50, "images": 5, "d": 4}
    prepared = prepare(torch.randn(100, 4), max_rows=30)
    assert prepared.info == {"n": 30, "images": 30, "d": 4}


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(4), {}, r"shape \(4,\): expected \(B, D\) or \(B, N, D\)"),
        (torch.zeros(2, 2, 2, 2), {}, r"expected \(B, D\)"),
        (torch.zeros(0, 4), {}, r"shape \(0, 4\)"),
        (torch.zeros(4, 0), {}, r"shape \(4, 0\)"),
        (torch.zeros(1, 4), {}, "Representation of 1 row: a spread needs two or more"),
        (torch.zeros(4, 4, dtype=torch.int32), {}, "Representation of int32: expected floats"),
        (torch.zeros(4, 4, dtype=torch.complex64), {}, "complex64: expected real numbers"),
        (torch.zeros(4, 4).to_sparse(), {}, "call .to_dense"),
        (torch.zeros(4, 4), {"max_rows": 1}, "max_rows >= 2 and spectrum_every >= 1"),
        (torch.zeros(4, 4), {"spectrum_every": 0}, "spectrum_every >= 1"),
        ("text", {}, "Representation of dtype <U4: expected real numbers"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_what_is_no_representation(x: Any, options: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        prepare(x, **options)

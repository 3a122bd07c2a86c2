"""Which rows of a representation are looked at, when its spectrum is due, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sidestep import client as sidestep
from sidestep.client import InvalidValueError
from sidestep.client.representation import evenly, sizes
from sidestep.client.statistics import drawn_positions, seed_of
from tests.unit.client.conftest import MakeClient
from tests.unit.client.emitted import values
from tests.unit.client.representations import check, emitted, named, prepare, reference


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# --- inputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
def test_it_takes_numpy(dtype: str) -> None:
    array = np.random.default_rng(0).normal(size=(32, 4)).astype(dtype)
    check(emitted(array), reference(array.astype(np.float64)))
    array.flags.writeable = False
    assert emitted(array)["n"] == 32


def test_gradients_stop_at_it() -> None:
    layer = torch.nn.Linear(4, 4)
    x = layer(torch.randn(8, 4))
    found = emitted(x, paired=x * 2, loss=x.sum())
    assert found["loss"] == pytest.approx(float(x.sum().detach()))
    x.sum().backward()  # the graph is whole
    assert layer.weight.grad is not None


@pytest.mark.parametrize("shape", [(64, 32), (16, 8, 32)], ids=str)
def test_autocast_does_not_reach_it(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape) + 100
    outside = emitted(x, paired=x + 1, extras=["uniformity", "sigreg"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = emitted(x, paired=x + 1, extras=["uniformity", "sigreg"])
    for name, array in outside.arrays.items():
        np.testing.assert_array_equal(inside[name], array, err_msg=name)


def test_inference_mode_and_no_grad() -> None:
    layer = torch.nn.Linear(4, 4)
    x = torch.randn(16, 4)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            y = layer(x)
            before = y.clone()
            assert emitted(y)["n"] == 16
            assert torch.equal(y, before)
    with torch.inference_mode():
        y = layer(x)
    assert emitted(y)["n"] == 16


@pytest.mark.parametrize("loss", [0.5, 1, True, np.float32(0.5), torch.tensor(0.5)], ids=repr)
def test_any_kind_of_loss(loss: Any) -> None:
    assert emitted(torch.randn(4, 3), loss=loss)["loss"] == float(loss)


def test_views_of_any_strides() -> None:
    whole = torch.randn(8, 17, 12)
    x = whole[:, 1:, ::2]
    check(emitted(x), reference(x.double().numpy()))
    x = whole.transpose(0, 1)
    check(emitted(x), reference(x.double().numpy()))


# --- the spectrum is due -------------------------------------------------------------------------


def test_the_spectrum_crosses_first_and_then_once_in_so_many_steps() -> None:
    memory: dict[str, Any] = {}
    x = torch.randn(8, 4)
    due = [
        step
        for step in [150, 199, 203, 399, 400, 1000, 1001, 5, 6]
        if prepare(x, memory=memory, step=step).info["due"]
    ]
    assert due == [150, 203, 400, 1000, 5]  # a step that goes back begins anew


def test_ranks_that_begin_apart_agree_from_the_next_period_on() -> None:
    x = torch.randn(8, 4)
    ranks: list[list[int]] = []
    for first in (0, 7, 130):
        memory: dict[str, Any] = {}
        steps = range(first, 1000)
        due = [s for s in steps if prepare(x, memory=memory, step=s).info["due"]]
        ranks.append([step for step in due if step >= 200])
    assert ranks == [[200, 400, 600, 800]] * 3


def test_the_spectrum_can_cross_each_time() -> None:
    memory: dict[str, Any] = {}
    for step in range(3):
        prepared = prepare(torch.randn(8, 4), memory=memory, step=step, spectrum_every=1)
        assert prepared.info["due"]


def test_a_refused_observation_leaves_it_due() -> None:
    memory: dict[str, Any] = {}
    with pytest.raises(InvalidValueError):
        prepare(torch.randn(8, 4), memory=memory, extras=["nonsense"])
    assert prepare(torch.randn(8, 4), memory=memory).info["due"]


# --- subsampling -------------------------------------------------------------------------------


@settings(deadline=None)
@given(b=st.integers(1, 40), n=st.integers(1, 40), max_rows=st.integers(2, 200))
def test_whole_images_evenly_spaced_then_tokens(b: int, n: int, max_rows: int) -> None:
    images, tokens = sizes(b, n, max_rows)
    x = torch.arange(b * n).reshape(b, n, 1)
    taken = evenly(evenly(x, images, 0), tokens, 1).reshape(images, tokens)
    assert images * tokens <= max_rows
    which = (taken // n)[:, 0].tolist()
    assert (taken // n == (taken // n)[:, :1]).all()  # each group is of one image
    if b * n <= max_rows:
        assert (images, tokens) == (b, n)  # everything
    if n <= max_rows:
        assert (images, tokens) == (min(b, max_rows // n), n)  # as many whole images as fit
    else:
        assert (images, tokens) == (1, max_rows)
    for indices, size in [(which, b), ((taken % n)[0].tolist(), n)]:
        gaps = {after - before for before, after in pairwise(indices)}
        assert all(gap > 0 for gap in gaps)
        assert len(gaps) <= 1 or max(gaps) - min(gaps) == 1
        assert size - indices[-1] <= -(-size // len(indices))  # to the end


def test_subsampling_is_used_and_said() -> None:
    x = torch.randn(100, 10, 4)
    prepared = prepare(x, max_rows=50, step=9)
    assert prepared.info == {
        "v": 2,
        "d": 4,
        "images": 5,
        "tokens": 10,
        "paired": False,
        "due": True,
        "shares": True,
        "extras": [],
    }
    found = emitted(x, max_rows=50, step=9)
    rows = reference(x[::20].double().numpy())
    np.testing.assert_allclose(found["gram"], rows["gram"], rtol=1e-4, atol=1e-4)
    # One token an image is of images that the rows leave out as well, 50 of these at most.
    chosen = x[::2][torch.arange(50), drawn_positions(50, 10, seed_of(9), "cpu")]
    np.testing.assert_allclose(found["image_mean"], chosen.double().mean(0), atol=1e-6)
    assert (found["n"], found["n_images"]) == (50, 50)
    prepared = prepare(torch.randn(100, 4), max_rows=30)
    assert (prepared.info["images"], prepared.info["tokens"]) == (30, 1)


@settings(deadline=None, max_examples=40)
@given(
    b=st.integers(1, 9),
    n=st.integers(1, 9),
    d=st.integers(1, 5),
    max_rows=st.integers(2, 30),
    paired=st.booleans(),
    flat=st.booleans(),
)
def test_whatever_fits_is_as_large_as_was_said(
    b: int, n: int, d: int, max_rows: int, paired: bool, flat: bool
) -> None:
    x = torch.randn(max(b, 2), d) if flat else torch.randn(b, max(n, 2), d)
    prepared = prepare(x, max_rows=max_rows, paired=x + 1 if paired else None)
    gathered = prepared.computation.gather(prepared.arrays)
    nbytes = sum(array.numel() * array.element_size() for array in gathered)
    assert nbytes == prepared.computation.gathered_bytes
    results = prepared.computation.compute(gathered)
    assert sum(4 * array.numel() for array in results) == prepared.computation.result_bytes
    named(prepared.info, results)


# --- through a client ----------------------------------------------------------------------------


def test_what_lies_in_the_outbox(connect: MakeClient) -> None:
    client = connect()
    x = torch.randn(16, 4, 6)
    for step in (1, 2):
        client.emit({"z": sidestep.Representation(x)}, step=step)
        x.zero_()  # it was looked at already
    first, second = values(client)
    assert (first.kind, first.tag, first.info["due"], second.info["due"]) == (
        "moments",
        "z",
        True,
        False,
    )
    scalars = np.frombuffer(first.arrays[0].data, np.float32)
    assert (scalars[0], scalars[5]) == (64, 16)
    assert scalars[2] > 1
    assert np.frombuffer(second.arrays[0].data, np.float32)[2] == 0
    assert {array.dtype for value in (first, second) for array in value.arrays} == {"float32"}


def test_matrices_that_do_not_fit_are_left_out_and_that_is_said_once(
    connect: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect()
    for step in (1, 2):
        client.emit({"z": sidestep.Representation(torch.randn(4, 400))}, step=step)
    assert [value.info["due"] for value in values(client)] == [False, False]
    assert client.stats().rejected == 0
    assert caplog.text.count("no spectrum of 400 dimensions") == 1


def test_a_bad_one_harms_only_itself(connect: MakeClient) -> None:
    client = connect()
    x = torch.randn(4, 3)
    bad = {
        "a": sidestep.Representation(x, paired=torch.randn(4, 4)),
        "b": sidestep.Representation(x.to_sparse()),
        "c": sidestep.Representation(x.long()),
        "d": sidestep.Representation(x.to("meta")),
        "e": sidestep.Representation(x, loss=x),
    }
    client.emit({**bad, "f": sidestep.Representation(x)}, step=1)
    assert client.stats().rejected == len(bad)
    assert [value.tag for value in values(client)] == ["f"]


# --- what is refused ---------------------------------------------------------------------------

X = torch.zeros(4, 4)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(4), {}, r"shape \(4,\): expected \(B, D\) or \(B, N, D\)"),
        (torch.zeros(2, 2, 2, 2), {}, r"expected \(B, D\)"),
        (torch.zeros(0, 4), {}, r"shape \(0, 4\)"),
        (torch.zeros(4, 0), {}, r"shape \(4, 0\)"),
        (torch.zeros(4, 0, 3), {}, r"shape \(4, 0, 3\)"),
        (torch.zeros(1, 4), {}, "Representation of 1 row: a spread needs two or more"),
        (torch.zeros(1, 1, 4), {}, "Representation of 1 row"),
        (torch.zeros(4, 4, dtype=torch.int32), {}, "Representation of int32: expected floats"),
        (torch.zeros(4, 4, dtype=torch.bool), {}, "Representation of bool: expected floats"),
        (torch.zeros(4, 4, dtype=torch.complex64), {}, "complex64: expected real numbers"),
        (torch.zeros(4, 4).to_sparse(), {}, "call .to_dense"),
        ("text", {}, "Representation of dtype <U4: expected real numbers"),
        (X, {"max_rows": 1}, "max_rows >= 2 and spectrum_every >= 1"),
        (X, {"spectrum_every": 0}, "spectrum_every >= 1"),
        (
            X,
            {"paired": torch.zeros(4, 5)},
            r"paired of shape \(4, 5\) on cpu: expected .* \(4, 4\)",
        ),
        (X, {"paired": torch.zeros(4, 1, 4)}, r"paired of shape \(4, 1, 4\)"),
        (X, {"paired": torch.zeros(4, 4).long()}, "paired of int64: expected floats"),
        (X, {"paired": torch.zeros(4, 4, device="meta")}, "on meta: expected"),
        (X, {"loss": torch.zeros(1)}, "loss must be a number or a 0-d float tensor"),
        (X, {"loss": "low"}, "loss of dtype <U3: expected real numbers"),
        (X, {"loss": torch.zeros((), device="meta")}, "loss on meta and x on cpu"),
        (X, {"extras": ["lydar"]}, "no optional statistic 'lydar': there are alignment, koleo"),
        (X, {"extras": ["koleo", "koleo"]}, "extras names a statistic twice"),
        (X, {"extras": "alignment"}, "'alignment' needs paired"),
        (X, {"extras": ["lidar"]}, "'lidar' needs views"),
        (X, {"views": torch.zeros(2, 4, 4)}, "views are for 'lidar' alone"),
        (X, {"extras": ["lidar"], "views": torch.zeros(1, 4, 4)}, r"expected \(V, B, D\)"),
        (X, {"extras": ["lidar"], "views": torch.zeros(4, 4)}, r"expected \(V, B, D\)"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_what_is_no_representation(x: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        prepare(x, **options)

"""Histograms by bits and norms of all parameters, against numpy, whatever the floats are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as st_numpy
from torch import nn

from sidestep.client import InvalidValueError
from sidestep.client.float_bits import (
    BUCKETS,
    ZEROS,
    _count_on_device,
    _readable,
    histogram,
    histogram_on_cpu,
)
from sidestep.client.parameters import MAX_PARAMETERS, Gradients, Weights
from sidestep.client.values import EmitContext

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)


def quiet(values: np.ndarray) -> np.ndarray:
    """With the NaNs that arithmetic makes in the place of those that it does not."""
    return np.where(np.isnan(values), np.float32(np.nan), values)


def without_nans(counts: np.ndarray) -> np.ndarray:
    """All NaNs in one bucket: which one a conversion makes is the processor's choice."""
    counts = counts.copy()
    nans = [*range(2041, 2048), *range(4089, 4096)]
    counts[2041] = counts[nans].sum()
    counts[nans[1:]] = 0
    return counts


def reference(values: np.ndarray) -> np.ndarray:
    """The counts, one element at a time, from the definition in words."""
    counts = np.zeros(BUCKETS, np.int64)
    for value in values.astype(np.float32).ravel():
        if value == 0:
            counts[ZEROS] += 1
            continue
        sign = 2048 if np.signbit(value) else 0
        if math.isnan(value):
            key = 2044  # a quiet NaN
        elif math.isinf(value):
            key = 2040
        else:
            mantissa, exponent = math.frexp(abs(float(value)))  # mantissa in [0.5, 1)
            if exponent - 1 < -126:
                key = math.floor(abs(float(value)) / 2.0**-126 * 8)
            else:
                key = (exponent - 1 + 127) * 8 + math.floor((mantissa * 2 - 1) * 8)
        counts[sign + key] += 1
    return counts


@given(st_numpy.arrays(np.float32, st.integers(0, 60), elements=FLOATS))
def test_each_float_is_in_the_bucket_of_its_bits(values: np.ndarray) -> None:
    values = quiet(values)
    tensor = torch.from_numpy(values)
    expected = reference(values)
    np.testing.assert_array_equal(histogram(tensor).numpy(), expected)
    counts = torch.zeros(BUCKETS, dtype=torch.int64)
    if len(values):
        _count_on_device(tensor, counts)
    np.testing.assert_array_equal(counts.numpy(), expected)


@settings(max_examples=30)
@given(
    st_numpy.arrays(np.float32, st.integers(1, 60), elements=FLOATS),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float64]),
)
def test_other_dtypes_are_read_as_float32(values: np.ndarray, dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(quiet(values)).to(dtype)
    expected = without_nans(reference(tensor.float().numpy()))
    np.testing.assert_array_equal(without_nans(histogram(tensor).numpy()), expected)
    on_device = torch.zeros(BUCKETS, dtype=torch.int64)
    _count_on_device(_readable(tensor), on_device)
    np.testing.assert_array_equal(without_nans(on_device.numpy()), expected)


def test_histograms_of_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(1000) * torch.logspace(-40, 30, 1000)
    whole = histogram(values)
    assert whole.sum() == 1000
    monkeypatch.setattr("sidestep.client.float_bits._CPU_CHUNK", 7)
    assert torch.equal(histogram(values), whole)
    assert torch.equal(histogram(values[:300]) + histogram(values[300:]), whole)
    assert torch.equal(histogram(values.view(10, 100).T), whole), "strides do not matter"


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def prepared(value: Any) -> dict[str, Any]:
    found = value.prepare(EmitContext(0, {}))
    *counted, names = found.arrays
    assert found.kind == "parameters"
    assert found.info["buckets"] == BUCKETS
    if len(counted) < 5:
        counts, norms, largest, *ratio = counted
    else:
        sizes, keys, full, norms, largest, *ratio = counted
        counts = np.zeros((len(sizes), BUCKETS), np.int64)
        counts[np.repeat(np.arange(len(sizes)), sizes), keys] = full
    names = bytes(names).decode().split("\n")
    return {"names": names, "counts": counts, "norms": norms, "largest": largest, "ratio": ratio}


def test_gradients_of_a_model() -> None:
    net = model()
    net[2].bias.requires_grad_(requires_grad=False)
    net(torch.randn(8, 5)).square().sum().backward()
    found = prepared(Gradients(net))
    named = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert found["names"] == list(named)
    assert "2.bias" not in found["names"]
    for at, gradient in enumerate(named.values()):
        exact = gradient.double()
        np.testing.assert_array_equal(found["counts"][at], reference(gradient.numpy()))
        assert found["norms"][at].item() == pytest.approx(exact.norm().item(), rel=1e-6)
        assert found["largest"][at].item() == exact.abs().max().item()


def test_weights_of_several_dtypes_and_what_is_empty() -> None:
    pairs = [
        ("half", nn.Parameter(torch.tensor([1.0, -2.0]).bfloat16())),
        ("empty", nn.Parameter(torch.zeros(0, 3))),
        ("none", nn.Parameter(torch.zeros(3))),
        ("bad", nn.Parameter(torch.tensor([math.nan, math.inf, 1.0]))),
    ]
    found = prepared(Weights(iter(pairs)))
    assert found["names"] == ["half", "none", "bad"]
    assert found["norms"][0].item() == pytest.approx(math.sqrt(5), rel=1e-6)
    assert found["counts"][1, ZEROS] == 3
    assert found["counts"][2, 2040] == 1
    assert found["counts"][2, 2041:2048].sum() == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=1e-2),
        lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
        lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-2)),
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0),
        lambda p: torch.optim.SGD(p, lr=1e-2),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
    ],
    ids=["adam", "amsgrad", "lr tensor", "adamw", "sgd", "momentum", "nesterov"],
)
def test_the_update_is_what_the_optimizer_did(make: Any) -> None:
    net = model().double()
    optimizer = make(net.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        before = [p.detach().clone() for p in net.parameters()]
        net(torch.randn(8, 5, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    (update,) = prepared(Weights(net, optimizer=optimizer))["ratio"]
    moved = [
        (p.detach() - old).norm().item() for p, old in zip(net.parameters(), before, strict=True)
    ]
    np.testing.assert_allclose(update.numpy(), moved, rtol=1e-5)


def test_no_update_yet_is_not_a_number() -> None:
    net = model()
    (update,) = prepared(Weights(net, optimizer=torch.optim.Adam(net.parameters())))["ratio"]
    assert update.isnan().all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Gradients(model()), r"no parameter has a \.grad"),
        (lambda: Weights(nn.ReLU()), "no parameters"),
        (lambda: Weights(7), r"torch\.nn\.Module or \(name, parameter\) pairs, not int"),
        (lambda: Weights([("w", 3.0)]), "a parameter is a tensor, not float"),
        (
            lambda: Weights([("w", torch.zeros(3, dtype=torch.int64))]),
            "'w' of int64: expected floats",
        ),
        (lambda: Weights([("w", torch.zeros(3, device="meta"))]), "meta device"),
        (lambda: Weights([("a", torch.zeros(3))] * 2), "two parameters are called 'a'"),
        (lambda: Weights(nn.LazyLinear(3)), "'weight': .*uninitialized"),
        (lambda: Weights([("w", torch.zeros(3, dtype=torch.complex64))]), "complex64"),
        (lambda: Weights([("w", torch.eye(3).to_sparse())]), "sparse"),
        (lambda: Weights([(str(i), torch.zeros(1)) for i in range(MAX_PARAMETERS + 1)]), "at most"),
        (
            lambda: Weights((net := model()), optimizer=torch.optim.RMSprop(net.parameters())),
            "Adam, AdamW, SGD, not for RMSprop",
        ),
    ],
)
def test_what_cannot_be_shown(make: Any, says: str) -> None:
    with pytest.raises(InvalidValueError, match=says):
        make().prepare(EmitContext(0, {}))


# --- whatever the parameters are -----------------------------------------------------------------

FLOAT_DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e8m0fnu,
)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype) -> None:
    tensor = torch.tensor([0.5, 1.0, 2.0, 8.0, 2.0**-4]).to(dtype)
    found = prepared(Weights([("w", tensor), ("strided", tensor[::2])]))
    exact = tensor.float().numpy()
    np.testing.assert_array_equal(found["counts"][0], reference(exact))
    np.testing.assert_array_equal(found["counts"][1], reference(exact[::2]))
    assert found["norms"][0].item() == pytest.approx(np.linalg.norm(exact), rel=1e-6)
    assert found["largest"].tolist() == [8, 2]
    assert found["norms"].dtype == found["largest"].dtype == torch.float32


def test_norms_are_not_reckoned_in_halves() -> None:
    half = torch.full((300, 300), 500.0, dtype=torch.float16)  # beyond float16's 65504
    found = prepared(Weights([("w", half), ("b", torch.ones(7, dtype=torch.bfloat16))]))
    assert found["norms"].tolist() == pytest.approx([150_000.0, math.sqrt(7)], rel=1e-6)


@given(st_numpy.arrays(np.float32, st.integers(0, 60), elements=FLOATS))
def test_the_largest_magnitude(values: np.ndarray) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        tensor = torch.from_numpy(quiet(values)).to(dtype)
        largest = histogram_on_cpu(tensor).largest
        expected = tensor.float().abs().max().item() if len(values) else 0.0
        assert largest == expected or (math.isnan(largest) and math.isnan(expected))


def test_zeros_of_both_signs_beside_denormals() -> None:
    tensor = torch.tensor([0.0, -0.0, -0.0, 1e-45, -1e-45, -1e-45, 1e-39, 1.0])
    np.testing.assert_array_equal(histogram(tensor).numpy(), reference(tensor.numpy()))
    assert histogram(tensor)[ZEROS] == 3


def test_views_that_stand_for_the_negative_of_their_memory() -> None:
    negative = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert negative.is_neg()
    found = prepared(Weights([("w", negative)]))
    np.testing.assert_array_equal(found["counts"][0], reference(np.array([-2, 4], "f4")))


def test_a_small_parameter_costs_little() -> None:
    arrays = Weights([("w", torch.randn(10))]).prepare(EmitContext(0, {})).arrays
    assert sum(array.nbytes for array in arrays) < 100


def test_counts_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidestep.client.parameter_counts._INT32_COUNTS", 100)
    sizes, keys, counts, *_ = Weights([("w", torch.zeros(100))]).prepare(EmitContext(0, {})).arrays
    assert (sizes.tolist(), keys.tolist(), counts.tolist()) == ([1], [ZEROS], [100])
    assert counts.dtype == np.int64
    counts = Weights([("w", torch.zeros(99))]).prepare(EmitContext(0, {})).arrays[2]
    assert counts.dtype == np.int32


def test_tied_frozen_and_compiled() -> None:
    net = model()
    net[2].weight = nn.Parameter(net[2].weight.detach(), requires_grad=False)
    net.add_module("again", net[0])
    names = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    assert prepared(Weights(net))["names"] == names
    compiled = torch.compile(net, backend="eager")
    assert next(n for n, _ in compiled.named_parameters()) == "_orig_mod.0.weight"
    assert prepared(Weights(compiled))["names"] == names


def test_pairs_are_as_good_the_second_time() -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1)
    value = Weights(net.named_parameters(), optimizer=optimizer)
    assert prepared(value)["names"] == prepared(value)["names"]
    assert prepared(Weights(dict(net.named_parameters())))["names"] == prepared(value)["names"]


def test_any_names() -> None:
    names = ["a\nb", "é" * 400, "日本", "x" * 3000, "\ud800", "norm", "a b"]
    found = prepared(Weights([(name, torch.ones(1)) for name in names[:-1]]))["names"]
    assert found == ["a b", "é" * 400, "日本", "x" * 3000, "?", "norm"]
    with pytest.raises(InvalidValueError, match="two parameters"):
        prepared(Weights([(name, torch.ones(1)) for name in names]))


def test_as_many_as_there_may_be() -> None:
    found = prepared(Weights([(str(i), torch.ones(1)) for i in range(MAX_PARAMETERS)]))
    assert found["counts"].sum() == MAX_PARAMETERS


def test_a_sparse_gradient_is_named() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1])).sum().backward()
    with pytest.raises(InvalidValueError, match=r"'weight' or its gradient is .*sparse_coo"):
        prepared(Gradients(embedding))
    (update,) = prepared(Weights(embedding, optimizer=torch.optim.SGD(embedding.parameters())))[
        "ratio"
    ]
    assert update.isnan().all()


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_update_of_who_climbs(nesterov: bool) -> None:
    weight = nn.Parameter(torch.randn(6))
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov, "maximize": True}
    optimizer = torch.optim.SGD([weight], **options)
    for _ in range(3):
        optimizer.zero_grad()
        before = weight.detach().clone()
        weight.square().sum().backward()
        optimizer.step()
    (update,) = prepared(Weights([("w", weight)], optimizer=optimizer))["ratio"]
    assert update.item() == pytest.approx((weight.detach() - before).norm().item(), rel=1e-5)


def test_shards_of_which_some_are_empty() -> None:
    class Sharded:
        """As much of a DTensor as is asked for; the whole of one would need a process group."""

        def __init__(self, local: torch.Tensor) -> None:
            self.local, self.device, self.dtype = local, local.device, local.dtype

        def detach(self) -> Any:
            return self

        def to_local(self) -> torch.Tensor:
            return self.local

        def full_tensor(self) -> torch.Tensor:
            raise AssertionError("communicates")

    pairs = [("a", Sharded(torch.ones(2, 3))), ("b", Sharded(torch.ones(0, 3)))]
    found = prepared(Weights(pairs))
    assert found["names"] == ["a"]
    assert found["counts"].sum() == 6
    with pytest.raises(InvalidValueError, match="no parameters"):
        prepared(Weights(pairs[1:]))

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
from sidestep.client.float_bits import BUCKETS, ZEROS, _count_on_device, histogram
from sidestep.client.parameters import MAX_PARAMETERS, Gradients, Weights
from sidestep.client.values import EmitContext

FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)


def quiet(values: np.ndarray) -> np.ndarray:
    """With the NaNs that arithmetic makes in the place of those that it does not."""
    return np.where(np.isnan(values), np.float32(np.nan), values)


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
    np.testing.assert_array_equal(histogram(tensor).numpy(), reference(tensor.float().numpy()))


def test_histograms_of_parts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(1000) * torch.logspace(-40, 30, 1000)
    whole = histogram(values)
    assert whole.sum() == 1000
    monkeypatch.setattr("sidestep.client.float_bits._CHUNK", 7)
    assert torch.equal(histogram(values), whole)
    assert torch.equal(histogram(values[:300]) + histogram(values[300:]), whole)
    assert torch.equal(histogram(values.view(10, 100).T), whole), "strides do not matter"


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def prepared(value: Any) -> dict[str, Any]:
    found = value.prepare(EmitContext(0, {}))
    counts, norms, largest, *ratio, names = found.arrays
    assert found.kind == "parameters"
    assert found.info["buckets"] == BUCKETS
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
        (lambda: Weights([("w", torch.zeros(3, dtype=torch.int64))]), "int64: expected floats"),
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

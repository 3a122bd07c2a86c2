"""Nothing in gradients and weights reads a result: shown without a GPU, by what would wait."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sidestep.client import InvalidValueError
from sidestep.client.float_bits import BUCKETS
from sidestep.client.parameter_counts import counted
from sidestep.client.parameters import Gradients, Weights
from sidestep.client.update_norms import update_norms
from sidestep.client.values import EmitContext
from tests.unit.client.test_statistics_sync import Refusing

OPTIMIZERS: dict[str, Any] = {
    "adamw": torch.optim.AdamW,
    "amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True),
    "fused": lambda p: torch.optim.AdamW(p, fused=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
}


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build without CUDA is asked whether it captures."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)


def trained(make: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    optimizer = make(net.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
    return net, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_wait_for_nothing(name: str) -> None:
    net, optimizer = trained(OPTIMIZERS[name])
    with torch.no_grad(), Refusing():
        norms = update_norms(optimizer, list(net.parameters()))
    assert norms.isfinite().all()


def test_counts_and_norms_of_a_device_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # The path of a device, on tensors that have a content to be compared.
    net, _ = trained(OPTIMIZERS["adamw"])
    tensors = [p.detach() for p in net.parameters()]
    tensors += [torch.randn(9).bfloat16(), torch.randn(9).double(), torch.zeros(3)]
    expected = counted(tensors)
    monkeypatch.setattr("sidestep.client.parameter_counts.histogram_on_cpu", None)
    with torch.no_grad(), Refusing() as mode:
        found = on_a_device(tensors)
    assert {"scatter_add_", "_foreach_norm"} <= mode.seen
    sizes, keys, counts = expected.counts
    dense = np.zeros((len(tensors), BUCKETS), np.int64)
    dense[np.repeat(np.arange(len(sizes)), sizes), keys] = counts
    np.testing.assert_array_equal(found[0].numpy(), dense)
    for one, other in zip(found[1:], expected.numbers, strict=True):
        torch.testing.assert_close(one, other)


def on_a_device(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """What `counted` does for a device, by the functions that it does it with."""
    from sidestep.client.float_bits import _count_on_device, _readable
    from sidestep.client.parameter_counts import _norms

    rows = []
    for tensor in tensors:
        row = torch.zeros(BUCKETS, dtype=torch.int64)
        _count_on_device(_readable(tensor.reshape(-1)), row)
        rows.append(row)
    return [torch.stack(rows).to(torch.int32), _norms(tensors, 2), _norms(tensors, float("inf"))]


def on(place: str, *shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    parameter = nn.Parameter(torch.randn(*shape, device=place, dtype=dtype))
    parameter.grad = torch.zeros_like(parameter)
    return parameter


@pytest.mark.parametrize("value", [Gradients, Weights])
def test_tensors_without_content_are_enough(value: Any) -> None:
    # In a FakeTensor there is nothing to read: what tries raises DataDependentOutputException.
    with FakeTensorMode(), Refusing():
        pairs = [
            ("a", on("cuda:0", 10, 3)),
            ("b", on("cuda:0", 5, dtype=torch.bfloat16)),
            ("c", on("cuda:0", 5, dtype=torch.float64)),
            ("d", on("cuda:0", 5, dtype=torch.float8_e5m2)),
        ]
        counts, norms, largest, names = value(pairs).prepare(EmitContext(0, {})).arrays
    assert bytes(names) == b"a\nb\nc\nd"
    assert (counts.shape, counts.dtype) == ((4, BUCKETS), torch.int32)
    for numbers in (norms, largest):
        assert (numbers.shape, numbers.dtype) == ((4,), torch.float32)
    assert {str(array.device) for array in (counts, norms, largest)} == {"cuda:0"}


def test_several_devices_are_brought_together_on_one_that_is_none_of_the_cpu() -> None:
    with FakeTensorMode():
        pairs = [
            ("host", on("cpu", 3)),
            ("a", on("cuda:1", 3)),
            ("b", on("cuda:0", 3)),
            ("c", on("cuda:1", 3)),
        ]
        found = Gradients(pairs[1:]).prepare(EmitContext(0, {})).arrays
    assert bytes(found[-1]) == b"a\nc\nb"
    assert {str(array.device) for array in found[:-1]} == {"cuda:1"}
    assert {array.shape[0] for array in found[:-1]} == {3}


def test_nothing_is_computed_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with FakeTensorMode(), Refusing() as mode:
        pairs = [("a", on("cuda:0", 3))]
        mode.seen.clear()
        with pytest.raises(InvalidValueError, match="captured"):
            Weights(pairs).prepare(EmitContext(0, {}))
    assert mode.seen <= {"detach", "alias"}

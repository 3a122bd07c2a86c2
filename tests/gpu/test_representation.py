"""On a GPU: the values are right, and no `emit` of a representation waits for the device."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from sidestep import client as sidestep
from sidestep.client.staging import MAX_ROOMS
from sidestep.client.statistics import drawn_positions
from tests.unit.client.conftest import MakeClient
from tests.unit.client.emitted import values
from tests.unit.client.representations import Emitted, check, emitted, named, reference

pytestmark = pytest.mark.gpu

_EMIT_S = 0.005
_SPIN_S = 0.2
EXTRAS = ("alignment", "koleo", "sigreg", "uniformity", "vicreg_covariance", "vicreg_variance")


@pytest.fixture
def client(cuda: torch.device, connect: MakeClient) -> sidestep.Client:
    return connect(outbox_bytes=64 << 20)


def arrived(client: sidestep.Client) -> list[Emitted]:
    """All representations that were emitted, once the device has done its work."""
    torch.cuda.synchronize()
    client.flush(0)
    found: list[Emitted] = []
    for value in values(client):
        arrays = [
            torch.from_numpy(np.frombuffer(array.data, np.float32).reshape(array.shape).copy())
            for array in value.arrays
        ]
        found.append(named(dict(value.info), arrays))
    return found


def spinning(cuda: torch.device) -> tuple[torch.cuda.Event, float]:
    """Keep the device busy for about `_SPIN_S`; an event at the end of it, and how long it took."""
    cycles = 10_000_000
    torch.cuda._sleep(cycles)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    torch.cuda._sleep(cycles)
    end.record()
    end.synchronize()
    needed = int(cycles * _SPIN_S * 1000 / begin.elapsed_time(end))
    done = torch.cuda.Event()
    torch.cuda._sleep(needed)
    done.record()
    return done, _SPIN_S


# --- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(256, 64), (32, 96), (64, 49, 96), (37, 11, 8)], ids=str)
def test_they_are_those_of_the_reference(
    client: sidestep.Client,
    cuda: torch.device,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    tf32: bool,
) -> None:
    torch.backends.cuda.matmul.allow_tf32 = tf32
    x = (torch.randn(shape, device=cuda) + 0.3).to(dtype)
    y = (x + 0.1 * torch.randn_like(x)).to(dtype)
    loss = torch.tensor(0.25, device=cuda)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        client.emit({"z": sidestep.Representation(x, paired=y, loss=loss)}, step=0)
    assert torch.backends.cuda.matmul.allow_tf32 == tf32
    (found,) = arrived(client)
    expected = reference(x.double().cpu().numpy(), y.double().cpu().numpy())
    # From a product in TF32 a participation ratio needs no more.
    square = expected.pop("square")
    assert found.arrays.pop("square") == pytest.approx(square, rel=1e-3)
    check(found, {**expected, "loss": 0.25})


def test_optional_ones_are_those_of_the_cpu(client: sidestep.Client, cuda: torch.device) -> None:
    x, y, views = torch.randn(512, 32), torch.randn(512, 32), torch.randn(3, 20, 8)
    options: dict[str, Any] = {"extras": [*EXTRAS, "lidar"]}
    on_device = {"paired": y.to(cuda), "views": views.to(cuda)}
    client.emit({"z": sidestep.Representation(x.to(cuda), **on_device, **options)}, step=0)
    (found,) = arrived(client)
    expected = emitted(x, paired=y, views=views, **options)
    for name in (*options["extras"], "between", "within"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-3)


def test_positions_are_those_of_the_cpu(cuda: torch.device) -> None:
    on_device = drawn_positions(4096, 197, 0x9E3779B9, cuda).cpu()
    assert torch.equal(on_device, drawn_positions(4096, 197, 0x9E3779B9, "cpu"))


def test_constant_rows_have_no_spread(client: sidestep.Client, cuda: torch.device) -> None:
    x = torch.full((64, 64, 96), 0.1, device=cuda)
    client.emit({"z": sidestep.Representation(x)}, step=0)
    (found,) = arrived(client)
    assert not found["m2"].any()
    assert (found["trace"], found["square"], found["ss_total"]) == (0, 0, 0)


def test_what_is_changed_right_after_emit_was_seen_before(
    client: sidestep.Client, cuda: torch.device
) -> None:
    for step, stream in enumerate([torch.cuda.current_stream(), torch.cuda.Stream()]):
        with torch.cuda.stream(stream):
            x = torch.randn(64, 49, 96, device=cuda)
            before = x.double().cpu().numpy()
            torch.cuda._sleep(20_000_000)
            client.emit({"z": sidestep.Representation(x, spectrum_every=1)}, step=step)
            x.fill_(7)
            del x
            torch.full((64, 49, 96), 7.0, device=cuda)  # takes the memory that is free now
        check(arrived(client)[step], reference(before, step=step))


def test_in_and_out_of_inference_mode(client: sidestep.Client, cuda: torch.device) -> None:
    x = torch.randn(64, 32, device=cuda)
    for step, mode in enumerate([torch.inference_mode, torch.enable_grad, torch.inference_mode]):
        with mode():
            client.emit({"z": sidestep.Representation(x), "loss": x.sum()}, step=step)
        torch.cuda.synchronize()
    assert client.stats().rejected == 0
    assert len(arrived(client)) == 3


# --- no synchronization --------------------------------------------------------------------------


@pytest.fixture
def batch(client: sidestep.Client, cuda: torch.device) -> dict[str, Any]:
    """A step's values, after a first one for which all memory was made."""
    x = torch.randn(64, 196, 384, device=cuda, dtype=torch.bfloat16, requires_grad=True)
    given = {
        "context": sidestep.Representation(x, spectrum_every=1),
        "target": sidestep.Representation(x * 2, paired=x, spectrum_every=1, extras=EXTRAS),
        "loss": x.float().square().mean(),
    }
    for step in range(3):
        client.emit(given, step=step)
        torch.cuda.synchronize()
    return given


def test_sync_debug_mode_finds_nothing(
    client: sidestep.Client, cuda: torch.device, batch: dict[str, Any]
) -> None:
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device=cuda).item()  # it does find something
    for step in range(3, 10):
        client.emit(batch, step=step)
    torch.cuda.set_sync_debug_mode("default")
    assert client.stats().rejected == 0
    assert len(arrived(client)) == 2 * 10


def test_emit_returns_while_the_device_is_still_busy(
    client: sidestep.Client, cuda: torch.device, batch: dict[str, Any]
) -> None:
    fastest = float("inf")
    for attempt in range(3):  # the machine may be shared
        done, _ = spinning(cuda)
        began = time.perf_counter()
        client.emit(batch, step=10 + attempt)
        took = time.perf_counter() - began
        assert not done.query(), f"emit took {took * 1e3:.1f} ms, and waited for the device"
        fastest = min(fastest, took)
        torch.cuda.synchronize()
    print(f"emit of two representations beside a spinning device: {fastest * 1e3:.2f} ms")
    assert fastest < _EMIT_S


def test_a_device_that_does_not_keep_up_drops_and_counts(
    client: sidestep.Client, cuda: torch.device, batch: dict[str, Any]
) -> None:
    before = client.stats().emitted
    done, _ = spinning(cuda)
    for step in range(10, 10 + MAX_ROOMS):  # two representations each
        client.emit(batch, step=step)
    dropped = client.stats().dropped
    assert not done.query()
    assert dropped >= MAX_ROOMS
    torch.cuda.synchronize()
    client.flush(0)
    stats = client.stats()
    assert (stats.dropped, stats.rejected) == (dropped, 0)
    assert stats.emitted - before == 3 * MAX_ROOMS


def test_capturing_a_graph_with_values_under_way(
    client: sidestep.Client, cuda: torch.device, batch: dict[str, Any]
) -> None:
    x = torch.ones(8, device=cuda)
    graph = torch.cuda.CUDAGraph()
    before = client.stats()
    done, _ = spinning(cuda)
    client.emit(batch, step=10)
    assert not done.query()
    with torch.cuda.graph(graph):
        y = x * 2
        client.emit(batch, step=11)
        client.emit({"lr": 0.1}, step=11)
        y += 1
    assert client.stats().dropped - before.dropped == 3  # two representations and the loss
    x.fill_(5)
    graph.replay()
    assert y.tolist() == [11.0] * 8
    client.emit(batch, step=12)
    assert len(arrived(client)) == 2 * (3 + 2)
    assert client.stats().rejected == 0


def test_weights_are_the_same_to_the_bit(client: sidestep.Client, cuda: torch.device) -> None:
    def train(logging: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Linear(64, 128),
            torch.nn.GELU(),
            torch.nn.Dropout(0.1),
            torch.nn.Linear(128, 96),
        ).to(cuda)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(30):
            x = torch.randn(32, 16, 64, device=cuda)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                z = model(x)
                loss = (z.float() - x.mean(dim=2, keepdim=True)).square().mean()
            if logging:
                given = sidestep.Representation(z, paired=z * 2, loss=loss, extras=EXTRAS)
                client.emit({"z": given, "loss": loss}, step=step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.cuda.synchronize()
        return [parameter.detach().clone() for parameter in model.parameters()]

    for one, other in zip(train(logging=False), train(logging=True), strict=True):
        assert torch.equal(one, other)
    assert client.stats().emitted > 0


def test_outside_of_a_compiled_region_it_breaks_no_graph(
    client: sidestep.Client, cuda: torch.device
) -> None:
    model = torch.compile(torch.nn.Linear(32, 16).to(cuda), fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for step in range(3):
        z = model(torch.randn(64, 32, device=cuda))
        client.emit({"z": sidestep.Representation(z)}, step=step)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert len(arrived(client)) == 3

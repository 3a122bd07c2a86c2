"""What is computed on a device: in rooms, bounded and used again; or dropped, and counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sidestep import client as sidestep
from sidestep.client.staging import MAX_ROOM_BYTES, MAX_ROOMS, Staging
from sidestep.client.values import Computation
from tests.unit.client.conftest import MakeClient
from tests.unit.client.emitted import numbers, values
from tests.unit.client.fake_device import FakeDevice, FakeTensor
from tests.unit.client.representations import named, reference


class Stage:
    """One device's staging, what arrived from it, and what did not."""

    def __init__(self) -> None:
        self.device = FakeDevice()
        self.dropped = 0
        self.arrived: list[Any] = []
        self.staging = Staging(self.device, self._drop)

    def _drop(self, count: int) -> None:
        self.dropped += count

    def put(self, *data: float, gathered: int = 64, result: int = 64) -> bool:
        computation = Computation(
            lambda arrays: arrays, lambda arrays: [2 * array for array in arrays], gathered, result
        )
        return self.staging.stage_computed(
            [FakeTensor(float(number)) for number in data],
            computation,
            lambda hosts: self.arrived.append([float(host) for host in hosts]),
        )


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_results_arrive_when_their_event_is_done(stage: Stage) -> None:
    assert stage.put(1, 2)
    stage.staging.collect()
    assert stage.arrived == []
    assert stage.staging.pending == 1
    stage.device.finish()
    stage.staging.collect()
    assert stage.arrived == [[2, 4]]
    assert (stage.staging.pending, stage.dropped) == (0, 0)


def test_rooms_are_made_once_and_used_again(stage: Stage) -> None:
    for step in range(20):
        # A pair in each step, of sizes that change a little.
        assert stage.put(step, gathered=40_000 + step)
        assert stage.put(-step, gathered=50_000)
        stage.device.finish()
        stage.staging.collect()
    assert len(stage.device.rooms) == 2
    assert stage.arrived == [[sign * 2 * step] for step in range(20) for sign in (1, -1)]


def test_the_smallest_room_that_fits_is_taken(stage: Stage) -> None:
    stage.put(1, gathered=1 << 20)
    stage.put(2, gathered=1 << 16)
    stage.device.finish()
    stage.staging.collect()
    stage.put(3, gathered=1 << 16)
    stage.put(4, gathered=1 << 20)
    assert len(stage.device.rooms) == 2


def test_when_all_rooms_are_busy_it_is_dropped(stage: Stage) -> None:
    assert [stage.put(n) for n in range(MAX_ROOMS + 2)] == [True] * MAX_ROOMS + [False] * 2
    stage.device.finish(1)
    stage.staging.collect()
    assert stage.put(99)
    assert not stage.put(100)
    stage.device.finish()
    stage.staging.collect()
    assert stage.arrived == [[2 * n] for n in (*range(MAX_ROOMS), 99)]
    assert len(stage.device.rooms) == MAX_ROOMS


def test_their_memory_is_bounded_and_a_free_one_makes_room_for_a_larger(stage: Stage) -> None:
    half = MAX_ROOM_BYTES // 2 - (64 << 10)
    assert stage.put(1, gathered=half - (1 << 20))
    assert not stage.put(2, gathered=half + 1)  # rounded up to the whole
    stage.device.finish()
    stage.staging.collect()
    assert stage.put(3, gathered=half + (1 << 20))  # which alone is more than all may be
    assert not stage.put(4)
    stage.device.finish()
    stage.staging.collect()
    assert stage.put(5)
    assert len(stage.device.rooms) == 2
    stage.device.finish()
    stage.staging.collect()
    assert stage.arrived == [[2], [6], [10]]


def test_while_a_graph_is_captured_nothing_is_launched(stage: Stage) -> None:
    assert stage.put(1)
    stage.device.finish()
    stage.device.is_capturing = True
    launched = len(stage.device.events)
    assert not stage.put(2)
    stage.staging.collect()
    assert (stage.arrived, len(stage.device.events)) == ([], launched)
    stage.device.is_capturing = False
    stage.staging.collect()
    assert stage.arrived == [[2]]


def test_what_failed_half_way_is_never_used_again(stage: Stage) -> None:
    stage.device.failing = RuntimeError("out of memory")
    for _ in range(2 * MAX_ROOMS):
        with pytest.raises(RuntimeError, match="out of memory"):
            stage.put(1)
    stage.device.failing = None
    assert all(stage.put(n) for n in range(MAX_ROOMS))
    assert len(stage.device.rooms) == 3 * MAX_ROOMS


def test_a_lost_device_counts_what_was_under_way(stage: Stage) -> None:
    for n in range(3):
        stage.put(n)
    stage.device.finish(1)
    stage.device.events[1].error = RuntimeError("CUDA error: device lost")
    with pytest.raises(RuntimeError, match="device lost"):
        stage.staging.collect()
    assert (stage.arrived, stage.dropped, stage.staging.pending) == ([[0]], 2, 0)
    assert stage.put(7)  # should it recover: in a room that nothing is under way in


def test_giving_up_counts(stage: Stage) -> None:
    stage.put(1)
    stage.staging.give_up()
    assert (stage.dropped, stage.staging.pending, stage.arrived) == (1, 0, [])


# --- through a client ----------------------------------------------------------------------------


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def client(connect: MakeClient, device: FakeDevice) -> sidestep.Client:
    made = connect(outbox_bytes=8 << 20)
    made._stages._make_device = lambda _: device
    return made


def arrays_of(value: Any) -> list[torch.Tensor]:
    return [
        torch.from_numpy(np.frombuffer(array.data, np.float32).reshape(array.shape).copy())
        for array in value.arrays
    ]


def test_representations_on_a_device(client: sidestep.Client, device: FakeDevice) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(16, 5, 6), torch.randn(16, 5, 6)
    for step in range(3):
        client.emit(
            {
                "z": sidestep.Representation(FakeTensor(x + step), paired=FakeTensor(y), loss=step),
                "loss": float(step),
            },
            step=step,
        )
    assert len(numbers(client)) == 3
    assert values(client) == []
    assert client.stats().held == 6
    device.finish()
    client.flush(0)
    for step, value in enumerate(values(client)):
        found = named(dict(value.info), arrays_of(value))
        expected = reference((x + step).double().numpy(), y.double().numpy(), step=step)
        assert (value.step, found["loss"], found["n_images"]) == (step, step, 16)
        np.testing.assert_allclose(found["mean"], expected["mean"], rtol=1e-5)
        np.testing.assert_allclose(found["square"], expected["square"], rtol=1e-5)
    assert len(values(client)) == 3


def test_a_busy_device_drops_and_counts_representations(
    client: sidestep.Client, device: FakeDevice
) -> None:
    for step in range(MAX_ROOMS + 3):
        client.emit({"z": sidestep.Representation(FakeTensor(torch.randn(8, 4)))}, step=step)
    stats = client.stats()
    assert (stats.emitted, stats.held, stats.dropped) == (MAX_ROOMS + 3, MAX_ROOMS, 3)
    device.finish()
    assert client.finish(0) is False  # no daemon
    stats = client.stats()
    assert (stats.held, stats.dropped) == (MAX_ROOMS, 3)


def test_while_a_graph_is_captured_representations_are_dropped_and_counted(
    client: sidestep.Client, device: FakeDevice
) -> None:
    device.is_capturing = True
    client.emit({"z": sidestep.Representation(FakeTensor(torch.randn(8, 4)))}, step=1)
    assert (client.stats().dropped, device.events, device.rooms) == (1, [], [])


def test_a_lost_device_raises_nothing(client: sidestep.Client, device: FakeDevice) -> None:
    representation = sidestep.Representation(FakeTensor(torch.randn(8, 4)))
    client.emit({"z": representation}, step=1)
    device.events[0].error = device.failing = RuntimeError("device lost")
    client.emit({"z": representation, "lr": 0.1}, step=2)
    client.emit({"lr": 0.2}, step=3)
    stats = client.stats()
    assert (stats.dropped, stats.rejected) == (1, 1)
    assert numbers(client) == [{"lr": 0.1}, {"lr": 0.2}]
    assert stats.emitted == stats.acked + stats.held + stats.dropped


def test_what_lies_on_two_devices_is_refused(client: sidestep.Client) -> None:
    x, y = torch.randn(8, 4), torch.randn(8, 4)
    client.emit({"z": sidestep.Representation(FakeTensor(x), paired=FakeTensor(y, 1))}, step=1)
    client.emit({"z": sidestep.Representation(x, loss=FakeTensor(1.0))}, step=1)
    client.emit({"z": sidestep.Representation(FakeTensor(x), paired=y)}, step=1)
    assert client.stats().rejected == 3

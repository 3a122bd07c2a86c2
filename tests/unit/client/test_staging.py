"""Values on a device: staged without waiting, handed over in order, dropped when it is busy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sidestep import client as sidestep
from sidestep.client.stages import Stages
from sidestep.client.staging import MAX_PENDING_BYTES, SLOT_NUMBERS, SLOTS, Staging
from tests.support.clock import Clock
from tests.unit.client.conftest import MakeClient
from tests.unit.client.emitted import numbers, rows, values
from tests.unit.client.fake_device import FakeDevice, FakeEvent, FakeTensor


class Drops:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, count: int) -> None:
        self.count += count


def staging(slots: int = 4) -> tuple[FakeDevice, Staging, Drops, list[Any]]:
    device, drops = FakeDevice(), Drops()
    return device, Staging(device, drops, slots), drops, []


def on_device(*data: float) -> list[FakeTensor]:
    return [FakeTensor(number) for number in data]


# --- one device --------------------------------------------------------------------------------


def test_numbers_arrive_when_their_event_is_done() -> None:
    device, staged, drops, arrived = staging()
    assert staged.stage_numbers(on_device(1.0, 2.0), lambda x: arrived.append(x.tolist()))
    staged.collect()
    assert arrived == []
    assert staged.pending == 1
    device.finish()
    staged.collect()
    assert arrived == [[1.0, 2.0]]
    assert (staged.pending, drops.count) == (0, 0)


def test_they_arrive_in_order_even_if_a_later_one_is_done_first() -> None:
    device, staged, _, arrived = staging()
    for n in range(3):
        staged.stage_numbers(on_device(n), lambda x: arrived.append(x.tolist()))
    device.events[1].done = device.events[2].done = True
    staged.collect()
    assert arrived == []
    device.finish()
    staged.collect()
    assert arrived == [[0.0], [1.0], [2.0]]


def test_without_a_free_slot_they_are_dropped_and_slots_come_back() -> None:
    device, staged, _, arrived = staging(slots=2)
    put = [staged.stage_numbers(on_device(n), lambda x: arrived.append(x.tolist())) for n in (0, 1)]
    assert put == [True, True]
    assert not staged.stage_numbers(on_device(2), arrived.append)
    device.finish(1)
    staged.collect()
    assert staged.stage_numbers(on_device(3), lambda x: arrived.append(x.tolist()))
    device.finish()
    staged.collect()
    assert arrived == [[0.0], [1.0], [3.0]]
    assert device.made_slots == 2  # nothing is allocated afterwards


def test_while_a_graph_is_captured_nothing_is_touched() -> None:
    device, staged, _, arrived = staging()
    device.is_capturing = True
    assert not staged.stage_numbers(on_device(1), arrived.append)
    assert not staged.stage_arrays(on_device(1), arrived.append)
    assert device.made_slots == 0
    device.is_capturing = False
    staged.stage_numbers(on_device(2), lambda x: arrived.append(x.tolist()))
    device.finish()
    device.is_capturing = True
    staged.collect()
    assert arrived == []
    assert device.events[0].queries == 0
    device.is_capturing = False
    staged.collect()
    assert arrived == [[2.0]]


def test_another_thread_queries_only_where_it_cannot_break_a_capture() -> None:
    device, staged, _, arrived = staging()
    device.queries_allowed = False
    staged.stage_numbers(on_device(1), lambda x: arrived.append(x.tolist()))
    device.finish()
    staged.collect(in_own_thread=True)
    assert device.events[0].queries == 0
    device.queries_allowed = True
    staged.collect(in_own_thread=True)
    assert arrived == [[1.0]]


def test_arrays_are_bounded_by_their_bytes() -> None:
    device, staged, _, arrived = staging()
    half = FakeTensor(torch.zeros(MAX_PENDING_BYTES // 8 + 1, dtype=torch.float32))
    assert staged.stage_arrays([half], lambda x: arrived.append(len(x[0])))
    assert not staged.stage_arrays([half], arrived.append)
    device.finish()
    staged.collect()
    assert staged.stage_arrays([half], lambda x: arrived.append(len(x[0])))
    assert arrived == [half.numel()]


def test_a_gather_that_fails_gives_its_slot_back() -> None:
    device, staged, _, arrived = staging(slots=1)
    device.failing = RuntimeError("CUDA error")
    for _ in range(3):
        with pytest.raises(RuntimeError, match="CUDA error"):
            staged.stage_numbers(on_device(1), arrived.append)
    device.failing = None
    assert staged.stage_numbers(on_device(1), arrived.append)


def test_a_device_that_fails_drops_what_was_under_way() -> None:
    device, staged, drops, arrived = staging()
    for n in range(3):
        staged.stage_numbers(on_device(n), lambda x: arrived.append(x.tolist()))
    device.finish(1)
    device.events[1].error = RuntimeError("CUDA error")
    with pytest.raises(RuntimeError, match="CUDA error"):
        staged.collect()
    assert arrived == [[0.0]]
    assert (staged.pending, drops.count) == (0, 2)
    staged.collect()  # and it can be used again, should it recover
    assert staged.stage_numbers(on_device(5), lambda x: arrived.append(x.tolist()))


def test_a_landing_that_emits_or_is_interrupted() -> None:
    device, staged, drops, arrived = staging()

    def land(numbers: Any) -> None:
        arrived.append(numbers.tolist())
        staged.collect()  # as an emit in a signal handler would
        if len(arrived) == 2:
            raise KeyboardInterrupt

    for n in range(3):
        staged.stage_numbers(on_device(n), land)
    device.finish()
    with pytest.raises(KeyboardInterrupt):
        staged.collect()
    assert (staged.pending, drops.count) == (1, 1)
    staged.collect()
    assert arrived == [[0.0], [1.0], [2.0]]


def test_giving_up_counts() -> None:
    _, staged, drops, arrived = staging()
    staged.stage_numbers(on_device(1), arrived.append)
    staged.stage_arrays(on_device(1), arrived.append)
    staged.give_up()
    assert (staged.pending, drops.count, arrived) == (0, 2, [])


# --- all devices -------------------------------------------------------------------------------


def stages(clock: Clock | None = None) -> tuple[Stages, dict[int, FakeDevice], Drops]:
    devices: dict[int, FakeDevice] = {}
    drops = Drops()

    def make(index: int) -> FakeDevice:
        return devices.setdefault(index, FakeDevice(index))

    return Stages(drops, make, clock or Clock()), devices, drops


def test_more_numbers_than_a_slot_holds_take_several() -> None:
    staged, devices, _ = stages()
    arrived: list[tuple[int, list[float]]] = []
    count = 2 * SLOT_NUMBERS + 3
    staged.stage_numbers(
        1,
        [FakeTensor(n, 1) for n in range(count)],
        lambda start, x: arrived.append((start, x.tolist())),
    )
    assert staged.pending == 3
    devices[1].finish()
    staged.collect()
    assert [start for start, _ in arrived] == [0, SLOT_NUMBERS, 2 * SLOT_NUMBERS]
    assert [n for _, numbers in arrived for n in numbers] == list(range(count))


def test_the_sender_collects_after_a_second_of_silence() -> None:
    clock = Clock()
    staged, devices, _ = stages(clock)
    arrived: list[Any] = []
    staged.collect_when_silent()  # nothing there yet
    staged.stage_numbers(0, on_device(1.0), lambda _, x: arrived.append(x.tolist()))
    devices[0].finish()
    clock.now += 0.9
    staged.collect_when_silent()
    assert arrived == []
    clock.now += 0.2
    staged.collect_when_silent()
    assert arrived == [[1.0]]
    staged.stage_numbers(0, on_device(2.0), lambda _, x: arrived.append(x.tolist()))
    devices[0].finish()
    clock.now += 5
    staged.collect()
    assert arrived == [[1.0], [2.0]]


def test_one_failing_device_does_not_stop_another(caplog: pytest.LogCaptureFixture) -> None:
    staged, devices, drops = stages()
    arrived: list[Any] = []
    for index in (0, 1):
        staged.stage_numbers(
            index, [FakeTensor(index, index)], lambda _, x: arrived.append(x.tolist())
        )
        devices[index].finish()
    for _ in range(2):
        devices[0].events[0].error = RuntimeError("an illegal access")
        staged.collect()
        staged.stage_numbers(0, on_device(0), lambda _, x: arrived.append(x.tolist()))
    assert arrived == [[1.0]]
    assert drops.count == 2
    assert caplog.text.count("values on a device were lost: an illegal access") == 1


def test_draining_waits_for_the_device_but_not_for_ever() -> None:
    import time

    devices: dict[int, FakeDevice] = {}
    staged = Stages(Drops(), lambda index: devices.setdefault(index, FakeDevice(index)))
    arrived: list[Any] = []
    assert staged.drain(0)
    staged.stage_numbers(0, on_device(1.0), lambda _, x: arrived.append(x.tolist()))

    class Soon(FakeEvent):
        def query(self) -> bool:
            return super().query() or self.queries > 3

    (pending,) = staged.devices[0]._pending
    pending.event = Soon()
    assert staged.drain(20)
    assert arrived == [[1.0]]
    staged.stage_numbers(0, on_device(2.0), lambda _, x: arrived.append(x.tolist()))
    began = time.monotonic()
    assert staged.drain(0.05) is False
    assert time.monotonic() - began < 5


# --- through a client ----------------------------------------------------------------------------


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def client(connect: MakeClient, device: FakeDevice) -> sidestep.Client:
    made = connect(outbox_bytes=1 << 20)
    made._stages._make_device = lambda _: device
    return made


def books_balance(client: sidestep.Client) -> bool:
    stats = client.stats()
    return stats.emitted == stats.acked + stats.held + stats.dropped


def test_numbers_on_a_device_are_a_record_of_their_own(
    client: sidestep.Client, device: FakeDevice
) -> None:
    client.emit({"loss": FakeTensor(0.5), "lr": 0.1, "norm": FakeTensor(2)}, step=7, wall_time=3)
    assert numbers(client) == [{"lr": 0.1}]
    assert (client.stats().emitted, client.stats().held) == (2, 2)
    device.finish()
    client.emit({"lr": 0.2}, step=8)  # collects
    assert [(row.step, row.numbers) for row in rows(client)] == [
        (7, {"lr": 0.1}),
        (7, {"loss": 0.5, "norm": 2.0}),
        (8, {"lr": 0.2}),
    ]
    assert rows(client)[1].time_ns == 3_000_000_000
    assert client.stats().emitted == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_any_dtype(client: sidestep.Client, device: FakeDevice, dtype: torch.dtype) -> None:
    client.emit({"a": FakeTensor(torch.tensor(1, dtype=dtype))}, step=1)
    device.finish()
    client.flush(0)
    assert numbers(client) == [{"a": 1.0}]


def test_a_bad_tensor_on_a_device_harms_only_itself(
    client: sidestep.Client, device: FakeDevice
) -> None:
    client.emit(
        {"a": FakeTensor(1.0), "b": FakeTensor([1.0, 2.0]), "c": FakeTensor(1j)},
        step=FakeTensor(3),  # type: ignore[arg-type]
    )
    client.emit({"a": FakeTensor(1.0), "b": FakeTensor([1.0, 2.0]), "c": FakeTensor(1j)}, step=1)
    device.finish()
    client.flush(0)
    assert numbers(client) == [{"a": 1.0}]
    assert client.stats().rejected == 3 + 2


def test_values_on_a_device(client: sidestep.Client, device: FakeDevice) -> None:
    client.emit({"h": sidestep.Histogram(FakeTensor([1.0, 2.0]))}, step=4)
    client.emit({"h": sidestep.Histogram(FakeTensor(torch.zeros(3, dtype=torch.bfloat16)))}, step=5)
    assert values(client) == []
    device.finish()
    client.flush(0)
    first, second = values(client)
    assert (first.tag, first.kind, first.step) == ("h", "histogram", 4)
    assert bytes(first.arrays[0].data) == torch.tensor([1.0, 2.0]).numpy().tobytes()
    assert (second.arrays[0].dtype, second.arrays[0].shape) == ("float32", (3,))


def test_a_value_that_is_on_a_device_in_part(client: sidestep.Client, device: FakeDevice) -> None:
    labels, weights = np.array([0, 1, 1]), torch.tensor([1.0, 2.0, 3.0])
    curve = sidestep.PRCurve(labels, FakeTensor([0.5, 0.25, 1.0]), weights=weights)
    metrics = {"a": 1, "b": FakeTensor([2.5]), "c": FakeTensor(3.5)}
    client.emit({"pr": curve, "hp": sidestep.HParams({"lr": 0.1}, metrics)}, step=4)
    labels[:] = 7
    weights[:] = 7.0
    device.finish()
    client.flush(0)
    pr, hp = values(client)
    arrays = [np.frombuffer(array.data, array.dtype).tolist() for array in pr.arrays]
    assert arrays == [[0, 1, 1], [0.5, 0.25, 1.0], [1.0, 2.0, 3.0]]
    assert hp.info["metrics"] == {"a": 1, "b": None, "c": None}
    assert hp.info["on_device"] == ["b", "c"]
    assert [np.frombuffer(array.data, "f4").tolist() for array in hp.arrays] == [[2.5], [3.5]]


def test_a_value_that_the_outbox_could_never_hold_is_refused_before_any_copy(
    client: sidestep.Client, device: FakeDevice
) -> None:
    client.emit({"h": sidestep.Histogram(FakeTensor(torch.zeros(1 << 20)))}, step=4)
    assert client.stats().rejected == 1
    assert device.events == []


def test_when_the_device_is_busy_values_are_dropped_and_counted(
    client: sidestep.Client, device: FakeDevice
) -> None:
    for step in range(SLOTS + 5):
        client.emit({"loss": FakeTensor(float(step))}, step=step)
    stats = client.stats()
    assert (stats.emitted, stats.held, stats.dropped) == (SLOTS + 5, SLOTS, 5)
    device.finish()
    client.emit({"loss": FakeTensor(99.0)}, step=99)
    assert [row["loss"] for row in numbers(client)] == list(map(float, range(SLOTS)))
    assert books_balance(client)


def test_a_failing_device_does_not_stop_the_numbers(
    client: sidestep.Client, device: FakeDevice
) -> None:
    client.emit({"loss": FakeTensor(1.0)}, step=1)
    device.events[0].error = RuntimeError("device-side assert")
    device.failing = RuntimeError("device-side assert")
    client.emit({"loss": FakeTensor(2.0), "lr": 0.1}, step=2)
    client.emit({"lr": 0.2}, step=3)
    assert numbers(client) == [{"lr": 0.1}, {"lr": 0.2}]
    assert (client.stats().dropped, client.stats().rejected) == (1, 1)
    assert books_balance(client)


def test_finish_takes_what_has_arrived_and_counts_the_rest(
    client: sidestep.Client, device: FakeDevice
) -> None:
    client.emit({"a": FakeTensor(1.0)}, step=1)
    client.emit({"b": FakeTensor(1.0)}, step=1)
    device.finish(1)
    assert client.finish(0) is False
    stats = client.stats()
    assert (stats.emitted, stats.held, stats.dropped) == (2, 1, 1)


def test_arrays_on_several_devices_are_refused(
    client: sidestep.Client, caplog: pytest.LogCaptureFixture
) -> None:
    class Both(sidestep.Value):
        kind = "both"

        def prepare(self, context: Any) -> Any:
            from sidestep.client.values import Prepared

            return Prepared("both", {}, (FakeTensor(1.0, 0), FakeTensor(1.0, 1)))

    client.emit({"a": Both()}, step=1)
    assert "both with arrays on several devices" in caplog.text

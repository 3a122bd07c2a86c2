"""A device whose transfers take as long as the test says, and tensors that live on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from sidestep.client.staging import SLOT_NUMBERS, Event, Room, Slot
from sidestep.client.values import Computation


class FakeEvent:
    """Completes when the test says so; raises what the test gives it."""

    def __init__(self) -> None:
        self.done = False
        self.error: Exception | None = None
        self.queries = 0

    def query(self) -> bool:
        self.queries += 1
        if self.error is not None:
            raise self.error
        return self.done


class FakeTensor:
    """A tensor on a CUDA device that is not there; reading it there would be a synchronization."""

    requires_grad = False

    def __init__(self, data: Any, index: int = 0) -> None:
        self.data = torch.as_tensor(data)
        self.device = SimpleNamespace(type="cuda", index=index)
        self.dtype = self.data.dtype
        self.shape = self.data.shape
        self.ndim = self.data.ndim
        self.layout = self.data.layout

    def detach(self) -> FakeTensor:
        return self

    def unsqueeze(self, dim: int) -> FakeTensor:
        return FakeTensor(self.data.unsqueeze(dim), self.device.index)

    def is_complex(self) -> bool:
        return self.data.is_complex()

    def numel(self) -> int:
        return self.data.numel()

    def element_size(self) -> int:
        return self.data.element_size()

    def reshape(self, shape: Any) -> FakeTensor:
        return FakeTensor(self.data.reshape(shape), self.device.index)

    def _synchronizes(self, *_: Any) -> Any:
        raise AssertionError("this would wait for the device")

    item = tolist = cpu = numpy = __float__ = __bool__ = __int__ = _synchronizes  # type: ignore[assignment]
    __repr__ = __str__ = __format__ = _synchronizes  # type: ignore[assignment]


@dataclass
class FakeDevice:
    """The device of one index."""

    index: int = 0
    is_capturing: bool = False
    queries_allowed: bool = True
    failing: Exception | None = None

    def __post_init__(self) -> None:
        self.events: list[FakeEvent] = []
        self.made_slots = 0
        self.rooms: list[Room] = []

    def capturing(self) -> bool:
        return self.is_capturing

    def may_query(self) -> bool:
        return self.queries_allowed

    def slots(self, count: int) -> list[Slot]:
        assert not self.is_capturing, "an allocation would break the capture"
        self.made_slots += count
        return [
            Slot([], None, torch.full((SLOT_NUMBERS,), -1.0, dtype=torch.float64), FakeEvent())
            for _ in range(count)
        ]

    def gather(self, slot: Slot, numbers: Sequence[Any]) -> None:
        if self.failing:
            raise self.failing
        assert all(tensor.device.index == self.index for tensor in numbers)
        event = slot.event
        assert isinstance(event, FakeEvent)
        event.done = False
        event.error = None
        for position, tensor in enumerate(numbers):
            slot.pinned[position] = tensor.data.to(torch.float64)
        self.events.append(event)

    def fetch(self, arrays: Sequence[Any]) -> tuple[list[Any], Event]:
        if self.failing:
            raise self.failing
        event = FakeEvent()
        self.events.append(event)
        return [array.data.clone() for array in arrays], event

    def room(self, gathered_bytes: int, result_bytes: int) -> Room:
        assert not self.is_capturing, "an allocation would break the capture"
        pinned = torch.full((result_bytes // 4,), -1.0)
        event = FakeEvent()
        room = Room(gathered_bytes, result_bytes, None, None, pinned, None, event)
        self.rooms.append(room)
        return room

    def compute(self, room: Room, arrays: Sequence[Any], computation: Computation) -> list[Any]:
        event = room.event
        assert isinstance(event, FakeEvent)
        assert event not in self.events or event.done, "the room is in use"
        assert computation.gathered_bytes <= room.gathered_bytes
        assert computation.result_bytes <= room.result_bytes
        gathered = computation.gather([array.data for array in arrays])
        if self.failing:
            raise self.failing
        event.done = False
        event.error = None
        results = computation.compute(gathered)
        packed = torch.cat([result.reshape(-1) for result in results])
        pinned = room.pinned[: len(packed)]
        pinned.copy_(packed)
        self.events.append(event)
        parts = pinned.split([result.numel() for result in results])
        return [part.view(result.shape) for part, result in zip(parts, results, strict=True)]

    def finish(self, count: int | None = None) -> None:
        """Complete the oldest transfers, or all."""
        pending = [event for event in self.events if not event.done]
        for event in pending[:count]:
            event.done = True

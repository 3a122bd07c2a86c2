"""The CUDA device's own steps, in order, on a torch whose CUDA is the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sidestep.client import Representation
from sidestep.client.cuda import CudaDevice
from sidestep.client.values import EmitContext

TRAINER = "the trainer's stream"


class Streams:
    """What stands for `torch.cuda`; notes what is done in which stream."""

    def __init__(self) -> None:
        self.current: Any = TRAINER
        self.log: list[tuple[Any, str]] = []
        outer = self

        class Event:
            def record(self, stream: Any) -> None:
                outer.log.append((stream, "record"))

        class Stream:
            def __init__(self, device: Any, priority: int) -> None:
                assert priority == 0

            @staticmethod
            def priority_range() -> tuple[int, int]:
                return 0, -5

            def wait_event(self, event: Event) -> None:
                outer.log.append((self, "wait"))

        self.Event, self.Stream = Event, Stream

    def current_device(self) -> int:
        return 0

    def current_stream(self, device: Any) -> Any:
        return self.current

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


@pytest.fixture
def streams() -> Streams:
    return Streams()


@pytest.fixture
def device(streams: Streams) -> CudaDevice:
    made = CudaDevice(0)

    def empty(shape: Any, *, dtype: Any, device: Any = None, pin_memory: bool = False) -> Any:
        streams.log.append((streams.current, "pinned" if pin_memory else "memory"))
        return torch.full((shape,) if isinstance(shape, int) else shape, 77, dtype=dtype)

    def copy(targets: Any, sources: Any) -> None:
        streams.log.append((streams.current, "copy"))
        torch._foreach_copy_(targets, sources)

    names = "no_grad", "inference_mode", "uint8", "float32", "float64", "cat"
    made._torch = SimpleNamespace(
        cuda=streams, empty=empty, _foreach_copy_=copy, **{n: getattr(torch, n) for n in names}
    )
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_copies_then_computes_in_the_side_stream_then_transfers(
    device: CudaDevice, streams: Streams, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = torch.randn(37, 5, 7).to(dtype)
    value = Representation(x, paired=x[:, :, :], loss=torch.tensor(0.5), max_rows=90)
    prepared = value.prepare(EmitContext(0, {}))
    computation = prepared.computation
    assert computation is not None
    with torch.inference_mode():
        room = device.room(computation.gathered_bytes, computation.result_bytes)
    side = device._side
    assert streams.log == [(TRAINER, "memory"), (side, "memory"), (TRAINER, "pinned")]
    streams.log.clear()
    for _ in range(2):
        found = device.compute(room, prepared.arrays, computation)
        for one, other in zip(found, computation.at_once(prepared.arrays), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, equal_nan=True)
            assert one.untyped_storage().data_ptr() == room.pinned.untyped_storage().data_ptr()
    steps = [(TRAINER, "copy"), (TRAINER, "record"), (side, "wait"), (side, "record")]
    assert streams.log == 2 * steps


def test_slots_made_in_inference_mode_serve_outside_of_it(device: CudaDevice) -> None:
    with torch.inference_mode():
        (slot,) = device.slots(1)
    device.gather(slot, [torch.tensor(1.5), torch.tensor(2, dtype=torch.int64)])
    assert slot.pinned[:2].tolist() == [1.5, 2.0]

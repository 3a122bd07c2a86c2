"""The CUDA device for `staging`: a multi-tensor gather, a copy into pinned memory, an event."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Sequence
from typing import Any, Final

from .staging import SLOT_NUMBERS, Event, Room, Slot
from .values import Computation

_ALIGNMENT: Final = 256
"""Bytes; that of the device's own allocations, so that kernels may use their widest loads."""

_RELAXED: Final = 2
"""cudaStreamCaptureModeRelaxed: this thread's calls do not break a capture in another one."""


class CudaDevice:
    """The CUDA device `index`, on whatever stream of it is current."""

    def __init__(self, index: int) -> None:
        import torch

        self._torch: Any = torch
        self._device = torch.device("cuda", index)
        self._exchange_mode = _capture_mode_function()
        self._side: Any = None

    def capturing(self) -> bool:
        """Whether the current stream is being captured into a graph."""
        with self._current():
            return bool(self._torch.cuda.is_current_stream_capturing())

    def may_query(self) -> bool:
        """Have this thread's queries leave the captures of other threads alone."""
        mode = ctypes.c_int(_RELAXED)
        return self._exchange_mode is not None and self._exchange_mode(ctypes.byref(mode)) == 0

    def slots(self, count: int) -> list[Slot]:
        """One allocation on the device and one of pinned memory, divided."""
        torch = self._torch
        shape = (count, SLOT_NUMBERS)
        # What is made in inference mode cannot be written to outside of it.
        with torch.inference_mode(False):
            memory = torch.empty(shape, dtype=torch.float64, device=self._device)
            pinned = torch.empty(shape, dtype=torch.float64, pin_memory=True)
        rows = zip(memory.unbind(), pinned.unbind(), strict=True)
        return [Slot(row.unbind(), row, twin, torch.cuda.Event()) for row, twin in rows]

    def gather(self, slot: Slot, numbers: Sequence[Any]) -> None:
        """One multi-tensor copy, which also converts to float64, and one to the host."""
        count = len(numbers)
        with self._current(), self._torch.no_grad():
            self._torch._foreach_copy_(list(slot.views[:count]), list(numbers))
            slot.pinned[:count].copy_(slot.memory[:count], non_blocking=True)
            self._record(slot.event)

    def fetch(self, arrays: Sequence[Any]) -> tuple[list[Any], Event]:
        """Copy into memory of torch's caching pinned allocator."""
        torch = self._torch
        event = torch.cuda.Event()
        with self._current(), torch.no_grad():
            hosts = [torch.empty(a.shape, dtype=a.dtype, pin_memory=True) for a in arrays]
            for host, array in zip(hosts, arrays, strict=True):
                host.copy_(array, non_blocking=True)
            self._record(event)
        return hosts, event

    def room(self, gathered_bytes: int, result_bytes: int) -> Room:
        """The results' memory belongs to the side stream, which alone writes to it."""
        torch = self._torch
        # Alignment may take something beside each of the few arrays.
        size = gathered_bytes + 16 * _ALIGNMENT
        with self._current(), torch.inference_mode(False):
            if self._side is None:
                lowest, _ = torch.cuda.Stream.priority_range()
                self._side = torch.cuda.Stream(self._device, priority=lowest)
            memory = torch.empty(size, dtype=torch.uint8, device=self._device)
            with torch.cuda.stream(self._side):
                packed = torch.empty(result_bytes // 4, dtype=torch.float32, device=self._device)
            pinned = torch.empty(result_bytes // 4, dtype=torch.float32, pin_memory=True)
            events = torch.cuda.Event(), torch.cuda.Event()
        return Room(gathered_bytes, result_bytes, memory, packed, pinned, *events)

    def compute(self, room: Room, arrays: Sequence[Any], computation: Computation) -> list[Any]:
        """Copy in the current stream; compute, pack and transfer in the side stream, after it."""
        torch = self._torch
        with self._current(), torch.no_grad():
            gathered = computation.gather(arrays)
            copies = _views(room.memory, gathered)
            torch._foreach_copy_(copies, list(gathered))
            self._record(room.copied)
            self._side.wait_event(room.copied)
            with torch.cuda.stream(self._side):
                results = computation.compute(copies)
                sizes = [int(result.numel()) for result in results]
                packed = room.packed[: sum(sizes)]
                torch.cat([result.reshape(-1) for result in results], out=packed)
                pinned = room.pinned[: sum(sizes)]
                pinned.copy_(packed, non_blocking=True)
                done: Any = room.event
                done.record(self._side)
        parts = zip(pinned.split(sizes), results, strict=True)
        return [part.view(result.shape) for part, result in parts]

    def _record(self, event: Any) -> None:
        # By its stream: an event records on the current device, which may be another one.
        event.record(self._torch.cuda.current_stream(self._device))

    def _current(self) -> contextlib.AbstractContextManager[object]:
        """Make this the current device, if it is not (that costs microseconds)."""
        if self._torch.cuda.current_device() == self._device.index:
            return contextlib.nullcontext()
        return self._torch.cuda.device(self._device)  # type: ignore[no-any-return]


def _views(memory: Any, likes: Sequence[Any]) -> list[Any]:
    """Tensors of the shapes and dtypes of `likes`, one after the other in a tensor of bytes."""
    views: list[Any] = []
    start = 0
    for like in likes:
        end = start + like.numel() * like.element_size()
        views.append(memory[start:end].view(like.dtype).view(like.shape))
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
    return views


def _capture_mode_function() -> Any:
    """`cudaThreadExchangeStreamCaptureMode` of the CUDA runtime that torch has loaded, or None."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            paths = (line.split(maxsplit=5)[-1].strip() for line in maps)
            path = next((path for path in paths if "/libcudart" in path), None)
        return None if path is None else ctypes.CDLL(path).cudaThreadExchangeStreamCaptureMode
    except (OSError, AttributeError):
        return None


def device_uuids() -> tuple[str, ...]:
    """UUIDs of the GPUs in torch's order, if torch is there and has already been told of them."""
    torch: Any = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
            return ()
        count = torch.cuda.device_count()
        return tuple(str(torch.cuda.get_device_properties(i).uuid) for i in range(count))
    except Exception:  # noqa: BLE001 - without a working driver there is nothing to say
        return ()


def memory_gb() -> dict[str, float]:
    """What torch has allocated and reserved on each CUDA device, if it uses CUDA at all.

    Returns:
        ``system/gpu{i}_memory_allocated_gb`` and ``…_reserved_gb`` by torch's index, in GB of 1e9
        bytes.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    values: dict[str, float] = {}
    for i in range(torch.cuda.device_count()):
        values[f"system/gpu{i}_memory_allocated_gb"] = torch.cuda.memory_allocated(i) / 1e9
        values[f"system/gpu{i}_memory_reserved_gb"] = torch.cuda.memory_reserved(i) / 1e9
    return values

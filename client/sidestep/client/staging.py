"""Takes values off a device without waiting for it: copy, event, and look again later.

For CUDA: numbers are gathered into a preallocated slot on the device by one multi-tensor copy, the
slot is copied into pinned memory without blocking, and an event marks the end. No call here
synchronizes. Completed slots are collected at the next `emit`; nobody polls in between, because
an event query from another thread breaks the capture of a CUDA graph. When all slots are busy the
value is dropped and counted. Other devices (MPS) copy with blocking, since their non-blocking
copies have corrupted data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

SLOTS: Final = 32
"""Emits that may be under way on a device before values are dropped."""

SLOT_NUMBERS: Final = 256
"""Numbers that one slot holds."""

MAX_PENDING_BYTES: Final = 64 << 20
"""Arrays under way, in pinned memory."""

Complete = Callable[[Sequence[Any]], None]
"""Called with what arrived: a float64 tensor for numbers, or one host tensor for each array."""


class Event(Protocol):
    """A mark in a stream of a device's work."""

    def query(self) -> bool:
        """Whether everything before the mark is done; never waits."""
        ...

    def synchronize(self) -> None:
        """Wait until it is."""
        ...


class Device(Protocol):
    """What staging needs of a device; injected, so that it can be tested without one."""

    def capturing(self) -> bool:
        """Whether the current stream is being captured into a graph."""
        ...

    def slot(self) -> tuple[Sequence[Any], Any, Any]:
        """A new slot: 0-d views of device memory, that memory as a whole, pinned host memory."""
        ...

    def gather(self, views: Sequence[Any], numbers: Sequence[Any]) -> None:
        """Copy 0-d tensors into views, in one call."""
        ...

    def fetch(self, array: Any) -> Any:
        """Start the copy of an array into pinned memory; return the host tensor."""
        ...

    def record(self) -> Event:
        """An event after everything that was started."""
        ...


class CudaDevice:
    """The CUDA device `index`, on whatever stream is current."""

    def __init__(self, index: int) -> None:
        import torch

        self._torch: Any = torch
        self._device = torch.device("cuda", index)

    def capturing(self) -> bool:
        """Whether the current stream is being captured into a graph."""
        return bool(self._torch.cuda.is_current_stream_capturing())

    def slot(self) -> tuple[Sequence[Any], Any, Any]:
        """Device memory for the numbers of one emit, and its pinned twin."""
        torch = self._torch
        memory = torch.empty(SLOT_NUMBERS, dtype=torch.float64, device=self._device)
        pinned = torch.empty(SLOT_NUMBERS, dtype=torch.float64, pin_memory=True)
        return memory.unbind(), memory, pinned

    def gather(self, views: Sequence[Any], numbers: Sequence[Any]) -> None:
        """One multi-tensor copy, which also converts to float64."""
        with self._torch.no_grad():
            self._torch._foreach_copy_(list(views), list(numbers))

    def fetch(self, array: Any) -> Any:
        """Copy into memory of torch's caching pinned allocator."""
        torch = self._torch
        host = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
        return host.copy_(array, non_blocking=True)

    def record(self) -> Event:
        """An event on the current stream."""
        event = self._torch.cuda.Event()
        event.record()
        return event  # type: ignore[no-any-return]


class Staging:
    """Values of one device that are on their way to the host, oldest first."""

    def __init__(self, device: Device, slots: int = SLOTS) -> None:
        self._device = device
        self._slots = [device.slot() for _ in range(slots)]
        self._pending: deque[tuple[Event, Callable[[], None], int]] = deque()
        self._pending_bytes = 0

    @property
    def pending(self) -> int:
        """Stagings that are not collected yet."""
        return len(self._pending)

    def stage_numbers(self, numbers: Sequence[Any], complete: Complete) -> bool:
        """Start the transfer of 0-d tensors.

        Returns:
            False when it was dropped: no slot is free, or a graph is being captured.
        """
        if len(numbers) > SLOT_NUMBERS or not self._slots or self._device.capturing():
            return False
        slot = self._slots.pop()
        views, memory, pinned = slot
        count = len(numbers)
        self._device.gather(views[:count], numbers)
        pinned[:count].copy_(memory[:count], non_blocking=True)

        def arrived() -> None:
            try:
                complete(pinned[:count])
            finally:
                self._slots.append(slot)

        self._pending.append((self._device.record(), arrived, 0))
        return True

    def stage_arrays(self, arrays: Sequence[Any], complete: Complete) -> bool:
        """Start the transfer of whole arrays.

        Returns:
            False when it was dropped: too much is under way, or a graph is being captured.
        """
        nbytes = sum(int(array.numel()) * int(array.element_size()) for array in arrays)
        if self._pending_bytes + nbytes > MAX_PENDING_BYTES or self._device.capturing():
            return False
        hosts = [self._device.fetch(array) for array in arrays]
        self._pending_bytes += nbytes
        self._pending.append((self._device.record(), lambda: complete(hosts), nbytes))
        return True

    def collect(self, wait: bool = False) -> None:
        """Hand over what has arrived, in order; with `wait`, everything."""
        while self._pending:
            if not wait and self._device.capturing():
                return
            event, arrived, nbytes = self._pending[0]
            if wait:
                event.synchronize()
            elif not event.query():
                return
            self._pending.popleft()
            self._pending_bytes -= nbytes
            arrived()

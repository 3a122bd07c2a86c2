"""Takes values off one device without waiting for it: copy, event, and look again later.

Numbers are gathered into a preallocated slot on the device by one multi-tensor copy, the slot is
copied into pinned memory without blocking, and an event marks the end. No call here synchronizes.
When all slots are busy, or a CUDA graph is being captured, the value is dropped and counted.

There is no lock that a trainer's thread could wait for: each step is one operation of a list or a
deque, and of two that collect at once the second one leaves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

SLOTS: Final = 32
"""Emits that may be under way on a device before values are dropped."""

SLOT_NUMBERS: Final = 256
"""Numbers that one slot holds."""

MAX_PENDING_BYTES: Final = 64 << 20
"""Arrays under way, in pinned memory."""

Complete = Callable[[Any], None]
"""Called with what arrived: a float64 tensor for numbers, or the list of host tensors."""


class Event(Protocol):
    """A mark in a stream of a device's work."""

    def query(self) -> bool:
        """Whether everything before the mark is done; never waits."""
        ...


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for the numbers of one emit, made once and used again.

    Attributes:
        views: 0-d views of device memory.
        memory: that memory as a whole.
        pinned: its twin on the host.
        event: marks the arrival there.
    """

    views: Sequence[Any]
    memory: Any
    pinned: Any
    event: Event


class Device(Protocol):
    """What staging needs of a device; injected, so that it can be tested without one."""

    def capturing(self) -> bool:
        """Whether the current stream is being captured into a graph."""
        ...

    def may_query(self) -> bool:
        """Whether this thread may query events even while another one captures a graph."""
        ...

    def slots(self, count: int) -> list[Slot]:
        """Slots for `count` emits."""
        ...

    def gather(self, slot: Slot, numbers: Sequence[Any]) -> None:
        """Start the copy of 0-d tensors into a slot and on to its pinned memory, with its event."""
        ...

    def fetch(self, arrays: Sequence[Any]) -> tuple[list[Any], Event]:
        """Start the copy of arrays into pinned memory; the host tensors and an event."""
        ...


@dataclass(slots=True)
class _Pending:
    event: Event
    land: Callable[[], None]
    slot: Slot | None
    nbytes: int
    sources: Sequence[Any]  # kept alive: their memory must not be given to another stream


class Staging:
    """Values of one device that are on their way to the host, oldest first.

    Args:
        device: the device.
        on_drop: told of values that were under way and will not arrive.
        slots: emits that may be under way.
    """

    def __init__(self, device: Device, on_drop: Callable[[int], None], slots: int = SLOTS) -> None:
        self._device = device
        self._on_drop = on_drop
        self._slot_count = slots
        self._slots: list[Slot] | None = None  # made when the first numbers come
        self._pending: deque[_Pending] = deque()
        self._pending_bytes = 0
        self._collecting = False

    @property
    def pending(self) -> int:
        """Stagings that are not collected yet."""
        return len(self._pending)

    def stage_numbers(self, numbers: Sequence[Any], complete: Complete) -> bool:
        """Start the transfer of up to `SLOT_NUMBERS` 0-d tensors.

        Returns:
            False when it was dropped: no slot is free, or a graph is being captured.
        """
        if self._device.capturing():
            return False
        if self._slots is None:
            self._slots = self._device.slots(self._slot_count)
        try:
            slot = self._slots.pop()
        except IndexError:
            return False
        try:
            self._device.gather(slot, numbers)
        except BaseException:
            self._slots.append(slot)
            raise
        count = len(numbers)

        def land() -> None:
            complete(slot.pinned[:count])

        self._pending.append(_Pending(slot.event, land, slot, 0, numbers))
        return True

    def stage_arrays(self, arrays: Sequence[Any], complete: Complete) -> bool:
        """Start the transfer of whole arrays.

        Returns:
            False when it was dropped: too much is under way, or a graph is being captured.
        """
        nbytes = sum(int(array.numel()) * int(array.element_size()) for array in arrays)
        if self._pending_bytes + nbytes > MAX_PENDING_BYTES or self._device.capturing():
            return False
        hosts, event = self._device.fetch(arrays)
        self._pending.append(_Pending(event, lambda: complete(hosts), None, nbytes, arrays))
        self._pending_bytes += nbytes
        return True

    def collect(self, in_own_thread: bool = False) -> None:
        """Hand over what has arrived, in order; never waits.

        Args:
            in_own_thread: the caller is not the trainer, whose captures it cannot see.
        """
        if not self._pending or self._device.capturing():
            return
        if in_own_thread and not self._device.may_query():
            return
        # With no call between these two, in which another thread or a signal handler could come.
        if self._collecting:
            return
        self._collecting = True
        try:
            while self._pending and self._pending[0].event.query():
                self._land_first()
        except Exception:
            # The device has failed: what was under way there is lost, and what comes may be.
            self.give_up()
            raise
        finally:
            self._collecting = False

    def give_up(self) -> None:
        """Count what is under way as dropped."""
        while self._pending:
            self._give_back(self._pending.popleft())
            self._on_drop(1)

    def _land_first(self) -> None:
        if not self._pending:
            return  # given up meanwhile
        arrived = self._pending[0]
        del self._pending[0]
        try:
            arrived.land()
        except BaseException:
            self._on_drop(1)
            raise
        finally:
            self._give_back(arrived)

    def _give_back(self, pending: _Pending) -> None:
        self._pending_bytes -= pending.nbytes
        if pending.slot is not None and self._slots is not None:
            self._slots.append(pending.slot)

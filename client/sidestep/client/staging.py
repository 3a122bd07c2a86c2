"""Takes values off one device without waiting for it: copy, event, and look again later.

Numbers are gathered into a preallocated slot on the device by one multi-tensor copy, the slot is
copied into pinned memory without blocking, and an event marks the end. What is to be computed first
is copied into a room of the device's memory, and computed from there beside the trainer's work. No
call here synchronizes. When all slots are busy, or a CUDA graph is being captured, the value is
dropped and counted.

There is no lock that a trainer's thread could wait for: each step is one operation of a list or a
deque, and of two that collect at once the second one leaves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from .values import Computation

SLOTS: Final = 32
"""Emits that may be under way on a device before values are dropped."""

SLOT_NUMBERS: Final = 256
"""Numbers that one slot holds."""

MAX_PENDING_BYTES: Final = 64 << 20
"""Arrays under way, in pinned memory."""

MAX_ROOMS: Final = 16
"""Computations that may be under way on a device before values are dropped."""

MAX_ROOM_BYTES: Final = 256 << 20
"""Device memory of all rooms, unless one alone needs more."""

_LEAST_ROOM_BYTES: Final = 64 << 10

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


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """Memory for one computation and its results, made once and used again.

    Attributes:
        gathered_bytes: room for what is computed from.
        result_bytes: room for the results.
        memory: that for the former, on the device.
        packed: that for the latter, on the device.
        pinned: the twin of `packed` on the host.
        copied: marks that `memory` is filled.
        event: marks the arrival in `pinned`.
    """

    gathered_bytes: int
    result_bytes: int
    memory: Any
    packed: Any
    pinned: Any
    copied: Any
    event: Event

    @property
    def device_bytes(self) -> int:
        """What it takes of the device's memory."""
        return self.gathered_bytes + self.result_bytes


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

    def room(self, gathered_bytes: int, result_bytes: int) -> Room:
        """Memory for one computation."""
        ...

    def compute(self, room: Room, arrays: Sequence[Any], computation: Computation) -> list[Any]:
        """Start a computation in a room, with its event; where on the host the results will be."""
        ...


@dataclass(slots=True)
class _Pending:
    event: Event
    land: Callable[[], None]
    slot: Slot | None
    room: Room | None
    nbytes: int
    sources: object  # kept alive: their memory must not be given to another stream


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
        self._rooms: list[Room] = []  # those that are free
        self._room_count = 0
        self._room_bytes = 0
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

        self._pending.append(_Pending(slot.event, land, slot, None, 0, numbers))
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
        self._pending.append(_Pending(event, lambda: complete(hosts), None, None, nbytes, arrays))
        self._pending_bytes += nbytes
        return True

    def stage_computed(
        self, arrays: Sequence[Any], computation: Computation, complete: Complete
    ) -> bool:
        """Start a computation on arrays that may change afterwards, and its results' transfer.

        `complete` must copy what it is given: the memory is used again.

        Returns:
            False when it was dropped: too many are under way, or a graph is being captured.
        """
        if self._device.capturing():
            return False
        room = self._free_room(computation.gathered_bytes, computation.result_bytes)
        if room is None:
            return False
        try:
            hosts = self._device.compute(room, arrays, computation)
        except BaseException:
            self._forget(room)  # something may still be under way in it
            raise
        self._pending.append(
            _Pending(room.event, lambda: complete(hosts), None, room, 0, computation)
        )
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
            pending = self._pending.popleft()
            if pending.room is not None:
                self._forget(pending.room)  # something may still be under way in it
                pending.room = None
            self._give_back(pending)
            self._on_drop(1)

    def _free_room(self, gathered_bytes: int, result_bytes: int) -> Room | None:
        """A room of that size or more: the smallest that is free, a new one, or none at all."""
        fitting = [
            room
            for room in list(self._rooms)
            if room.gathered_bytes >= gathered_bytes and room.result_bytes >= result_bytes
        ]
        for room in sorted(fitting, key=lambda room: room.device_bytes):
            try:
                self._rooms.remove(room)
            except ValueError:  # another thread was first
                continue
            return room
        # Powers of two, so that a batch whose size changes each time finds the same rooms.
        sizes = [
            max(_LEAST_ROOM_BYTES, 1 << (max(1, nbytes) - 1).bit_length())
            for nbytes in (gathered_bytes, result_bytes)
        ]
        while self._room_count and (
            self._room_count >= MAX_ROOMS or self._room_bytes + sum(sizes) > MAX_ROOM_BYTES
        ):
            try:
                self._forget(self._rooms.pop(0))  # too small
            except IndexError:
                return None
        room = self._device.room(*sizes)
        self._room_count += 1
        self._room_bytes += room.device_bytes
        return room

    def _forget(self, room: Room) -> None:
        self._room_count -= 1
        self._room_bytes -= room.device_bytes

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
        if pending.room is not None:
            self._rooms.append(pending.room)

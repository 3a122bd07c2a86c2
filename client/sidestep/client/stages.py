"""The staging of all devices: who collects what has arrived, and when.

The trainer does, at each `emit` and `flush`: it knows whether it is capturing a CUDA graph, which
an event query would break. Once it has been silent for a second the sender's thread does, so that
the last values before a long pause are seen; its queries are told to leave captures alone, and
where they cannot be told, it does not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from .cuda import CudaDevice
from .staging import SLOT_NUMBERS, Complete, Device, Staging
from .values import Computation

logger = logging.getLogger("sidestep")

_SILENT_S: Final = 1.0
_POLL_S: Final = 0.001


class Stages:
    """Values that are on their way from any device.

    Args:
        on_drop: told how many were dropped.
        make_device: makes the device of an index.
        clock: monotonic, in seconds.

    Attributes:
        devices: those that anything came from; empty until then.
    """

    def __init__(
        self,
        on_drop: Callable[[int], None],
        make_device: Callable[[int], Device] = CudaDevice,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.devices: dict[int, Staging] = {}
        self._on_drop = on_drop
        self._make_device = make_device
        self._clock = clock
        self._heard = 0.0
        self._failed = False

    @property
    def pending(self) -> int:
        """Records that are under way."""
        return sum(staging.pending for staging in list(self.devices.values()))

    def stage_numbers(
        self, index: int, numbers: Sequence[Any], complete: Callable[[int, Any], None]
    ) -> None:
        """Start the transfer of 0-d tensors of device `index`.

        Args:
            index: the device.
            numbers: the tensors.
            complete: called with a position in `numbers` and the float64s from there on, as
                often as it takes to bring them all.
        """
        self._heard = self._clock()
        staging = self._staging(index)
        for start in range(0, len(numbers), SLOT_NUMBERS):

            def land(arrived: Any, start: int = start) -> None:
                complete(start, arrived)

            if not staging.stage_numbers(numbers[start : start + SLOT_NUMBERS], land):
                self._on_drop(1)

    def stage_arrays(self, index: int, arrays: Sequence[Any], complete: Complete) -> None:
        """Start the transfer of the arrays of one value from device `index`."""
        self._heard = self._clock()
        if not self._staging(index).stage_arrays(arrays, complete):
            self._on_drop(1)

    def stage_computed(
        self, index: int, arrays: Sequence[Any], computation: Computation, complete: Complete
    ) -> None:
        """Start a computation beside the trainer's on device `index`, and the results' transfer."""
        self._heard = self._clock()
        if not self._staging(index).stage_computed(arrays, computation, complete):
            self._on_drop(1)

    def collect(self) -> None:
        """In the trainer's thread: hand over what has arrived; never waits for a device."""
        self._heard = self._clock()
        self._collect(in_own_thread=False)

    def collect_when_silent(self) -> None:
        """In the sender's thread: the same, if the trainer has not come by for a second."""
        if self.devices and self._clock() - self._heard > _SILENT_S:
            self._collect(in_own_thread=True)

    def drain(self, timeout_s: float) -> bool:
        """Collect until nothing is under way any more, for at most `timeout_s`; whether it is."""
        deadline = self._clock() + timeout_s
        while self.pending:
            self.collect()
            if not self.pending:
                break
            if self._clock() >= deadline:
                return False
            # By looking, since synchronizing has no timeout.
            time.sleep(_POLL_S)
        return True

    def give_up(self) -> None:
        """Count what is under way as dropped."""
        for staging in self.devices.values():
            staging.give_up()

    def abandon(self) -> None:
        """In a forked child: the devices are the parent's."""
        self.devices.clear()

    def _staging(self, index: int) -> Staging:
        staging = self.devices.get(index)
        if staging is None:
            made = Staging(self._make_device(index), self._on_drop)
            staging = self.devices.setdefault(index, made)
        return staging

    def _collect(self, *, in_own_thread: bool) -> None:
        for staging in list(self.devices.values()):
            try:
                staging.collect(in_own_thread)
            except Exception as error:  # noqa: BLE001 - a failed device raises at any query
                if not self._failed:
                    self._failed = True
                    logger.warning("sidestep: values on a device were lost: %s", error)

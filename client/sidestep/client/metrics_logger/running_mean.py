"""Means of numbers that come one by one, on any device, without waiting for it."""

from __future__ import annotations

from typing import Any

from ..checks import check_number_tensor, number
from ..values import on_device


class RunningMean:
    """The mean of what was added: one sum in float64, however many there were.

    Numbers on a device are summed there, at the moment of `add`: no synchronization, and the
    caller may change the tensor afterwards.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum = 0.0
        self._device_sum: Any = None

    def __len__(self) -> int:
        """How many numbers were added."""
        return self._count

    def add(self, value: Any) -> None:
        """Add a number.

        Args:
            value: int, float, bool, numpy scalar, or 0-d tensor on any device.

        Raises:
            InvalidValueError: it is no real number.
        """
        if not on_device(value):
            self._sum += number(value)
        else:
            check_number_tensor(value)
            tensor = value.detach()
            if self._device_sum is None:
                import torch

                # MPS has no float64.
                wide = torch.float32 if tensor.device.type == "mps" else torch.float64
                self._device_sum = tensor.to(wide, copy=True)
            else:
                self._device_sum += tensor
        self._count += 1

    def mean(self) -> Any:
        """The mean: a float, or a 0-d tensor on the device of what was added.

        Raises:
            ZeroDivisionError: nothing was added.
        """
        if self._device_sum is None:
            return self._sum / self._count
        return (self._device_sum + self._sum) / self._count

"""What a training step takes: seen from the sender's thread, which looks at the newest step.

No call of `emit` is timed. The furthest step and a monotonic clock are compared over windows of a
second or more, so that trainers that emit every step and every 500 steps are told alike. Lower
steps (an evaluation that counts epochs) are left aside, unless nothing goes further for a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_WINDOW_NS: Final = 1_000_000_000
_AGAIN_NS: Final = 60_000_000_000
_LONGEST_NS: Final = (1 << 63) - 1


class StepTime:
    """The time from one step to the next.

    Args:
        clock_ns: monotonic nanoseconds.

    Attributes:
        mean_ns: over the latest window, in nanoseconds; 0 while not known.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock_ns = clock_ns
        self._began: tuple[int, int] | None = None  # step and time at which the window began
        self._furthest = self._moved_ns = 0
        self.mean_ns = 0

    def look(self, step: int) -> None:
        """`step` is the newest one."""
        now = self._clock_ns()
        if self._began is None or (step < self._furthest and now - self._moved_ns > _AGAIN_NS):
            self._began = step, now
            self._furthest, self._moved_ns = step, now
            return
        if step <= self._furthest:
            return
        self._furthest, self._moved_ns = step, now
        first, since = self._began
        if now - since >= _WINDOW_NS:
            self.mean_ns = min(_LONGEST_NS, max(1, (now - since) // (step - first)))
            self._began = step, now

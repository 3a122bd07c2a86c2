"""What an `emit` costs the trainer: one call a second is timed, and a moving average kept.

Timing each would be a part of what is measured. The daemon shows it as ``sidestep/emit_us``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_EVERY_S: Final = 1.0
_NEWEST: Final = 0.2
"""Weight of the newest call in the average."""


class EmitCost:
    """The average; a context around the call that is timed.

    Written by the thread that emits, asked for by the sender's.

    Args:
        clock_ns: monotonic nanoseconds.

    Attributes:
        wanted: whether the next call is to be timed.
        mean_ns: the average, in nanoseconds; 0 while none was timed.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self.wanted = False
        self.mean_ns = 0
        self._clock_ns = clock_ns
        self._began_ns = self._noted_ns = clock_ns()

    def __enter__(self) -> None:
        """The call begins."""
        self.wanted = False
        self._began_ns = self._clock_ns()

    def __exit__(self, *_: object) -> None:
        """The call ends."""
        self._noted_ns = self._clock_ns()
        took_ns = max(1, self._noted_ns - self._began_ns)
        mean_ns = self.mean_ns
        self.mean_ns = took_ns if not mean_ns else round(mean_ns + _NEWEST * (took_ns - mean_ns))

    def look(self) -> None:
        """In the sender's thread: see whether it is time for the next one."""
        if self._clock_ns() - self._noted_ns >= _EVERY_S * 1e9:
            self.wanted = True

"""Whether ingest makes progress, as the main loop sees it; the service manager's watchdog hears."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from .service_manager import ServiceManager

STALLED_S: Final = 30.0
"""Ingest makes rounds every tenth of a second, also when nothing comes and when the disk is full.
One that takes longer than this hangs in the state directory's file system."""


class Progress:
    """Sees the number of ingest's rounds grow; lives in the daemon's main thread.

    Args:
        manager: its watchdog is petted while that number grows.
        clock: monotonic seconds.
    """

    def __init__(
        self, manager: ServiceManager, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._manager = manager
        self._clock = clock
        self._rounds = -1
        self._moved_at = clock()

    def see(self, rounds: int) -> None:
        """So many rounds it has made."""
        now = self._clock()
        if rounds != self._rounds:
            self._rounds, self._moved_at = rounds, now
        self._manager.tick(rounds, now)

    def stalled_s(self) -> float:
        """Seconds since it was last seen to make one."""
        return round(max(0.0, self._clock() - self._moved_at), 1)

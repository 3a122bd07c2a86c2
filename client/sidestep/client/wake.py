"""A pipe that wakes a polling thread from any other one, and stays harmless after its end."""

from __future__ import annotations

import os
import threading


class WakePipe:
    """`wake` makes `read_fd` readable; after `close` it does nothing."""

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # Reentrant, for signal handlers. Without it the number of a pipe that is closed could
        # belong to somebody's file by the time it is written to.
        self._lock = threading.RLock()
        self._open = True

    def wake(self) -> None:
        """Make `read_fd` readable."""
        with self._lock:
            if self._open:
                try:
                    os.write(self._write_fd, b"\0")
                except BlockingIOError:
                    pass  # it is full: a wake-up is on its way

    def drain(self) -> None:
        """Take note of all wake-ups."""
        try:
            os.read(self.read_fd, 4096)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the descriptors back."""
        with self._lock:
            if self._open:
                self._open = False
                os.close(self.read_fd)
                os.close(self._write_fd)

"""A child process at the other end of a channel: started, watched, restarted with backoff."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psutil

from .channel import Channel, ChannelClosedError

_BACKOFF_FIRST_S: Final = 0.25
_BACKOFF_LAST_S: Final = 30.0
_HEALTHY_S: Final = 30.0
"""A process that lived so long starts without delay the next time."""


class Child:
    """One child process, which this object starts again whenever it is wanted and has died.

    Args:
        arguments: what follows ``python -m``; the channel's descriptor is appended.
        greet: what the process is told first, each time it starts.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        greet: Callable[[], dict[str, Any]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._arguments = list(arguments)
        self._greet = greet
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._started = 0.0
        self._failures = 0
        self._not_before = 0.0
        self._blamed = False
        self.last_exit: int | None = None
        self.problem: str | None = None  # why it could not even be started

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._channel is not None

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self._process.pid if self._process is not None else None

    def fileno(self) -> int:
        """The channel's descriptor, while `running`."""
        assert self._channel is not None
        return self._channel.fileno()

    @property
    def pause_s(self) -> float:
        """Seconds until it may be started again."""
        return max(0.0, self._not_before - self._clock())

    def blame(self) -> None:
        """It could not do its work: however long it has lived, the next pause is longer."""
        self._blamed = True

    def ensure(self) -> bool:
        """Start the process if it is not there and its pause is over; whether it was started."""
        now = self._clock()
        if self.running or now < self._not_before:
            return False
        try:
            ours = self._spawn()
        except OSError as error:  # no descriptor, memory or process is left: later, perhaps
            self.problem = f"cannot be started: {error}"
            self._failures += 1
            self._not_before = now + self._backoff_s()
            return False
        self.problem = None
        # A worker that does not read must not stop the daemon.
        ours.setblocking(False)
        self._channel = Channel(ours)
        self._started = now
        self.tell(self._greet())
        return True

    def _spawn(self) -> socket.socket:
        """Start the process; our end of its channel."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", *self._arguments, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )
            except BaseException:
                ours.close()
                raise
        return ours

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message, if there is a process and it reads."""
        if self._channel is not None:
            try:
                self._channel.send(message)
            except ChannelClosedError:
                pass  # `hear` will see the end of file

    def hear(self) -> list[dict[str, Any]] | None:
        """What it said; None when it has gone, which begins the pause before the next start."""
        if self._channel is None:
            return None
        try:
            return self._channel.receive()
        except ChannelClosedError:
            self._ended()
            return None

    def kill(self) -> None:
        """End the process at once, and all that it has started."""
        if self._process is not None and self._process.poll() is None:
            end_descendants(self._process.pid)
            self._process.kill()
            self._ended()

    def reap(self, timeout_s: float) -> bool:
        """Wait for a process that was told to end; whether it has."""
        if self._process is None:
            return True
        try:
            self.last_exit = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        self._drop()
        return True

    def _ended(self) -> None:
        now = self._clock()
        assert self._process is not None
        try:
            self.last_exit = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()  # it closed its channel and goes on: no use to anybody
            self.last_exit = self._process.wait()
        was_healthy = now - self._started > _HEALTHY_S and not self._blamed
        self._failures, self._blamed = 1 if was_healthy else self._failures + 1, False
        if self.last_exit == 0:
            self._failures = 0
        pause = self._backoff_s()
        self._not_before = now + (pause if self._failures else 0.0)
        self._drop()

    def _backoff_s(self) -> float:
        return min(_BACKOFF_LAST_S, _BACKOFF_FIRST_S * 2.0 ** min(self._failures, 16))

    def _drop(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = None
        self._process = None


def end_descendants(pid: int) -> None:
    """SIGKILL to all that a process has started: what hangs does not see its parent go."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return
    for process in found:
        try:
            process.kill()
        except psutil.Error:
            pass  # it has gone by itself

"""Tells a service manager (systemd) that the daemon is ready, alive and stopping: `sd_notify(3)`.

A few datagrams to the socket that the manager names in the environment, and nothing at all where it
names none. The watchdog is petted for progress alone: by the main loop, and only when ingest has
made a round since the last time. If either hangs, nobody pets it, and the manager acts.
"""

from __future__ import annotations

import faulthandler
import os
import socket
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Final

_CLOSE_S: Final = 20.0
"""What closing takes at most once everything is written: threads and workers get so long."""

_PETS: Final = 4
"""Signs of life in one watchdog's period; systemd asks for two at least."""


class ServiceManager:
    """The daemon's end of the manager's socket; lives in the daemon's main thread.

    Its variables are taken out of the environment: what the daemon starts must not speak for it.

    Args:
        environ: the environment; loses ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``.
        log: says something to the daemon's log.
    """

    def __init__(self, environ: MutableMapping[str, str], log: Callable[[str], None]) -> None:
        self._log = log
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._address: str | None = None
        if address.startswith("@"):
            self._address = "\0" + address[1:]  # a name that is in no file system
        elif address.startswith("/"):
            self._address = address
        elif address:
            log(
                f"NOTIFY_SOCKET {address!r} is not a Unix socket: the service manager hears nothing"
            )
        self._socket: socket.socket | None = None
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        mine = not pid or pid == str(os.getpid())
        self._period_s = int(usec) / 1e6 if usec.isdecimal() and mine and self._socket else 0.0
        self._next_pet = 0.0
        self._rounds = -1
        self._stopping = self._failed = False

    def ready(self, status: str) -> None:
        """Everything is open: clients are served from now on.

        Args:
            status: one line for whoever looks at the service.
        """
        if self._period_s:
            # The manager ends who hangs with SIGABRT: then the log says where each thread was.
            with suppress(OSError, ValueError, RuntimeError):
                faulthandler.enable()
        self._say(f"READY=1\nSTATUS={status}")

    def tick(self, rounds: int, now: float) -> None:
        """Pet the watchdog if there is one, it is time, and there was progress.

        Args:
            rounds: how many rounds ingest has made.
            now: monotonic seconds.
        """
        if not self._period_s or now < self._next_pet or rounds == self._rounds:
            return
        self._rounds = rounds
        self._next_pet = now + self._period_s / _PETS
        self._say("WATCHDOG=1")

    def stopping(self, timeout_s: float) -> None:
        """The daemon leaves, which may take so long as `timeout_s` and the closing.

        The manager's own patience is extended to that, whatever its configuration says.
        """
        if self._stopping:
            return
        self._stopping = True
        patience_us = round((timeout_s + _CLOSE_S) * 1e6)
        self._say(
            f"STOPPING=1\nEXTEND_TIMEOUT_USEC={patience_us}\nSTATUS=writing what is journalled"
        )

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, text: str) -> None:
        if self._socket is None or self._address is None:
            return
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError as error:
            if not self._failed:
                self._log(
                    f"the service manager cannot be told {text.partition(chr(10))[0]}: {error}"
                )
            self._failed = True

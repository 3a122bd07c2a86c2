"""A terminal: a pseudo-terminal with a command in it, whose window can be closed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import threading
from types import TracebackType
from typing import Self

from .sandbox import Sandbox
from .waiting import wait_until

_ROWS, _COLUMNS = 40, 120


def _heed_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Terminal:
    """Runs `command` as the leader of a session of its own, with this as its controlling terminal.

    Args:
        sandbox: whose environment and directory it gets.
        command: what to run.
        env: changes to the environment.
    """

    def __init__(self, sandbox: Sandbox, *command: str, **env: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            cwd=sandbox.work,
            env=sandbox.env(TERM="xterm", **env),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            # Whoever runs the tests may ignore it (`nohup`), and a child would inherit that.
            preexec_fn=_heed_hangup,  # noqa: PLW1509 - it calls nothing that takes a lock
        )
        os.close(slave)
        self._said = bytearray()
        self._open = True
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close_window()
        self.process.kill()
        self.process.wait(30)

    def _read(self) -> None:
        while self._open:
            if select.select([self._master], [], [], 0.05)[0]:
                try:
                    self._said += os.read(self._master, 65536)
                except OSError:  # nobody has it open any more
                    return

    def said(self) -> str:
        """All that was written to it."""
        return self._said.decode(errors="replace")

    def await_words(self, words: str, timeout_s: float = 30.0) -> None:
        """Wait until something has been written."""
        wait_until(lambda: words in self.said(), timeout_s, lambda: f"{words!r} in {self.said()}")

    def type(self, keys: bytes) -> None:
        """Press keys; b"\\x03" is Ctrl-C."""
        os.write(self._master, keys)

    def close_window(self) -> None:
        """Close it: the kernel hangs up on everybody in it (SIGHUP), and nothing can be written."""
        if self._open:
            self._open = False
            self._thread.join(5)
            os.close(self._master)

"""What the daemon and its processes owe their terminal or log: nothing; either may go or be full.

A terminal that was closed answers each write with an error, and so does a log on a full disk. A
daemon has things to write then that matter more than what it says of them.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable
from typing import Any, Final, TextIO, cast

_TERMINALS_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def leave_signals_to_the_daemon() -> None:
    """Ctrl-C and a closed terminal reach the whole group: the daemon says when it is time to go."""
    for number in _TERMINALS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def make_printing_harmless() -> None:
    """From now on, what cannot be printed in this process is not, and nothing is raised."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _Harmless):
            setattr(sys, name, cast("TextIO", _Harmless(stream)))


class _Harmless:
    """A text stream whose writing never fails; all else of it is as it was."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except (OSError, ValueError):  # ValueError: it is closed
            pass
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

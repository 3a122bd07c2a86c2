"""Whether the journal's disk takes what is written, when it is tried again, and a reserve on it.

A full disk that the journal itself has filled would stay full: the sinks could not store how far
they are, and no row could leave, since that is a write, too. So some of the disk is reserved in a
file. When a write fails it is given up, for those two; clients are asked for nothing until it can
be reserved again. That is a sign that others have made room, or that enough rows have left.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from .file import reserve_bytes
from .writer import Journal

_RETRY_FIRST_S: Final = 0.25
_RETRY_LAST_S: Final = 2.0
_LOOK_S: Final = 1.0


class Storage:
    """What ingest knows of the disk under the journal; lives in its thread.

    Args:
        journal: the writing end.
        log: says something to the daemon's log.

    Attributes:
        error: why nothing can be written; None when all is well.
    """

    def __init__(self, journal: Journal, log: Callable[[str], None]) -> None:
        self.error: str | None = None
        self._journal = journal
        self._log = log
        self._directory = os.path.dirname(journal.path) or "."
        self._reserve = os.path.join(self._directory, "reserve")
        self._retry_at = self._look_at = 0.0
        self._file = self._identity()
        self._pause_s = _RETRY_FIRST_S
        try:
            self._make_reserve()
        except OSError:  # a disk that is nearly full: without, then
            self._give_up_reserve()  # of which some may have been had

    def failed(self, error: sqlite3.Error, now: float) -> None:
        """A round could not be written: it is undone."""
        if self.error is None:
            self._log(f"the journal cannot be written ({error}): clients hold their records")
            self._pause_s = _RETRY_FIRST_S
        self.error = str(error)
        self._give_up_reserve()
        self._wait(now)
        try:
            self._journal.rollback()
            self._journal.shorten_history()
        except sqlite3.Error:
            pass  # the same trouble; reading goes on all the same

    def gone(self, now: float) -> bool:
        """Whether the journal is no longer where it was: what is written to it nobody would find.

        Looked at once a second; a disk that does not answer is `refuses`' trouble.
        """
        if now < self._look_at:
            return False
        self._look_at = now + _LOOK_S
        try:
            if self._identity() == self._file:
                return False
        except FileNotFoundError:
            pass
        except OSError:
            return False
        self._log(
            f"the journal {self._journal.path} was deleted or replaced while it was in use: "
            "nothing more is taken, and the daemon leaves; the next one begins anew"
        )
        return True

    def _identity(self) -> tuple[int, int]:
        found = os.stat(self._journal.path)
        return found.st_dev, found.st_ino

    def refuses(self, now: float) -> bool:
        """Whether nothing of clients may be written in this round; tries it when it is time."""
        if self.error is None:
            return False
        if now < self._retry_at:
            return True
        # What was given up a moment ago is no room: the next write would fail again. Looked at
        # first, since to try it would take from the sinks what they need just now.
        try:
            found = os.statvfs(self._directory)
            wanted = 3 * reserve_bytes(self._directory) // 2
            if found.f_blocks and found.f_bavail * found.f_frsize < wanted:
                raise OSError
            self._make_reserve()
        except OSError:  # full, or away
            self._give_up_reserve()
            self._wait(now)
            return True
        self._log("the journal can be written again")
        self.error = None
        return False

    def _wait(self, now: float) -> None:
        self._retry_at = now + self._pause_s
        self._pause_s = min(_RETRY_LAST_S, 2 * self._pause_s)

    def _make_reserve(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._reserve, flags, 0o600)
        try:
            os.posix_fallocate(fd, 0, reserve_bytes(self._directory))
        finally:
            os.close(fd)

    def _give_up_reserve(self) -> None:
        with suppress(OSError):
            os.unlink(self._reserve)

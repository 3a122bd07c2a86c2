"""Whether the journal can be written: said once when it cannot, and tried before it is relied on.

An empty transaction succeeds on a full disk, and so may a small one, in space that the journal has
already. So after a failure nothing is written until as much as a round may bring was written once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

from .journal import Journal

_RETRY_S: Final = 1.0
_PROBE_BYTES: Final = 1 << 20


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
        self._retry = 0.0

    def failed(self, error: sqlite3.Error, now: float) -> None:
        """A round could not be written: it is undone."""
        if self.error is None:
            self._log(f"the journal cannot be written ({error}): clients hold their records")
        self.error = str(error)
        self._retry = now + _RETRY_S
        try:
            self._journal.rollback()
        except sqlite3.Error:
            pass  # the same trouble; reading goes on all the same

    def refuses(self, now: float) -> bool:
        """Whether nothing may be written in this round; tries it when it is time."""
        if self.error is None:
            return False
        if now < self._retry:
            return True
        try:
            self._probe()
        except sqlite3.Error as error:
            self.failed(error, now)
            return True
        self.error = None
        self._log("the journal can be written again")
        return False

    def _probe(self) -> None:
        """Write something of the size of a round, and take it back.

        In two transactions, since what comes and goes in one is never written.
        """
        write = self._journal.connection.execute
        self._journal.begin()
        write("CREATE TABLE IF NOT EXISTS probe (data BLOB)")
        write("INSERT INTO probe VALUES (zeroblob(?))", (_PROBE_BYTES,))
        self._journal.commit()
        self._journal.begin()
        write("DELETE FROM probe")
        self._journal.commit()

"""Looks whether a journal's bytes are sound, and puts one aside that is not.

A disk that is full or away is no damage: the journal is all right, and will be when the disk is.
What is damage is known by SQLite's codes, or by what does not decode. Most of it is met when the
journal is opened; what is met later condemns it, so that whoever opens it next puts it aside.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgpack

from .reader import read_runs, read_totals

_CHECKED_BYTES: Final = 64 << 20
"""A journal up to this size is looked through when it is opened (50 ms); of a larger one, all but
its rows."""

_MAX_ROW: Final = 1 << 62
"""More rows nobody has; near the largest integer SQLite has no number for the next one."""

_DAMAGE: Final = frozenset(
    {
        sqlite3.SQLITE_ERROR,  # a table or a column is not there, a text is no UTF-8
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_SCHEMA,
    }
)
_CONDEMNED: Final = ".condemned"
_PARTS: Final = ("", "-wal", "-shm", _CONDEMNED)
_ASIDE: Final = ".damaged-"


class DamagedJournalError(sqlite3.DatabaseError):
    """What is in the journal cannot have been written by a daemon of this version."""


def is_damage(error: BaseException) -> bool:
    """Whether the journal is at fault, and not the disk that it is on."""
    if not isinstance(error, sqlite3.Error):
        return isinstance(error, UnicodeDecodeError)  # of SQLite's own message, which quotes it
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return not isinstance(error, sqlite3.OperationalError) or "UTF-8" in str(error)
    return code & 0xFF in _DAMAGE


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether SQLite itself says that the file is damaged, and nothing else."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def opened(
    path: str, connect: Callable[[], sqlite3.Connection], log: Callable[[str], None]
) -> sqlite3.Connection:
    """A connection to the journal, or to a new one in the place of one that is damaged.

    Args:
        path: the database file.
        connect: opens it, and makes it when there is none.
        log: says something to the daemon's log.

    Raises:
        sqlite3.Error: it is the disk.
    """
    _take_back(path, log)
    try:
        _condemned(path)
        connection = connect()
        try:
            check(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if not is_damage(error) and not _is_unusable(path):
            raise
        _put_aside(path, error, log)
        return connect()


def check(connection: sqlite3.Connection, path: str) -> None:
    """Read what a daemon reads at its start.

    Raises:
        sqlite3.Error: it cannot be read.
        DamagedJournalError: it is not what a daemon has written.
    """
    if os.path.getsize(path) <= _CHECKED_BYTES:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise DamagedJournalError(str(found)[:200])
    try:
        runs = read_runs(connection)
        clients = connection.execute(
            "SELECT run_id, uuid, state, id, rank, attempt, pid, durable_seq, dropped, lost, "
            "rejected FROM clients"
        )
        for run_id, uuid, state, *numbers in clients:
            sound = isinstance(uuid, bytes) and all(isinstance(n, int) for n in numbers)
            if run_id not in runs or not sound:
                raise DamagedJournalError(f"a client of run {run_id!r:.40}")
            _text(state)
        for tag, state in connection.execute("SELECT tag, state FROM alarm_states"):
            _text(tag)
            bytes(memoryview(state))
        for name, run_id, row in connection.execute("SELECT name, run_id, row FROM cursors"):
            _text(name)
            _number(run_id)
            _number(row)
        _forget_damaged_tags(connection)
        _identity(connection)
        newest = connection.execute(
            "SELECT seq, (SELECT max(id) FROM batches) FROM sqlite_sequence WHERE name = 'batches'"
        ).fetchone()
        if newest and not (newest[1] or 0) <= _number(newest[0]) < _MAX_ROW:
            raise DamagedJournalError(f"rows up to {newest[1]}, and their number is {newest[0]}")
        for total in read_totals(connection).values():
            _number(total)
    except (TypeError, ValueError, KeyError, AttributeError, msgpack.UnpackException) as error:
        raise DamagedJournalError(f"{type(error).__name__}: {error}"[:200]) from None


def _forget_damaged_tags(connection: sqlite3.Connection) -> None:
    """Tag sets that are not what was written: a client that lives defines them again."""
    damaged = [
        (client_id, tag_set)
        for client_id, tag_set, tags, crc in connection.execute(
            "SELECT client_id, id, tags, crc FROM tag_sets"
        )
        if crc is not None and (not isinstance(tags, bytes) or crc != zlib.crc32(tags))
    ]
    connection.executemany("DELETE FROM tag_sets WHERE client_id = ? AND id = ?", damaged)


def condemn(path: str, why: str) -> None:
    """Have the journal put aside when it is opened next."""
    try:
        with open(path + _CONDEMNED, "w", encoding="utf-8") as file:
            file.write(why)
    except OSError:
        pass  # then it is found out once more


def _condemned(path: str) -> None:
    try:
        with open(path + _CONDEMNED, encoding="utf-8", errors="replace") as file:
            raise DamagedJournalError(file.read(200))
    except FileNotFoundError:
        pass


def count_put_aside(path: str) -> int:
    """How many journals lie beside the one at `path` that were put aside."""
    folder, name = os.path.split(path)
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return 0
    return sum(n.startswith(name + _ASIDE) and not n.endswith(_PARTS[1:]) for n in names)


def _put_aside(path: str, why: BaseException, log: Callable[[str], None]) -> None:
    stem = aside = f"{path}{_ASIDE}{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while any(os.path.lexists(aside + part) for part in _PARTS):
        number += 1
        aside = f"{stem}.{number}"
    log(f"journal {path} is damaged ({why}): kept as {aside}, starting a new one")
    # The log before its database: beside another one it would count as that one's.
    for part in reversed(_PARTS):
        with suppress(FileNotFoundError):
            os.rename(path + part, aside + part)


def _take_back(path: str, log: Callable[[str], None]) -> None:
    """Make our files readable and writable for us again, which nobody can have meant otherwise."""
    for part in _PARTS:
        with suppress(OSError):
            found = os.lstat(path + part)
            ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
            if ours and found.st_mode & 0o600 != 0o600:
                log(f"{path + part} has mode {found.st_mode & 0o777:o}: made 600 again")
                os.chmod(path + part, 0o600)


def _is_unusable(path: str) -> bool:
    """Whether something lies there that can be no journal of ours: a folder, another's file."""
    for part in _PARTS:
        try:
            found = os.stat(path + part)
        except FileNotFoundError:
            continue
        except OSError:
            return True
        if not stat.S_ISREG(found.st_mode) or not os.access(path + part, os.R_OK | os.W_OK):
            return True
    return False


def _identity(connection: sqlite3.Connection) -> None:
    found = connection.execute("SELECT id FROM identity").fetchone()
    if not found or not isinstance(found[0], int):
        raise DamagedJournalError("it has no identity")


def _number(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise DamagedJournalError(f"{value!r:.40} is no number of a row")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise DamagedJournalError(f"{value!r:.40} is no text")
    return value

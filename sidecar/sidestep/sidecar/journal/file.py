"""The journal's file: what tables it has, and how SQLite is to treat it.

A row of records and a tag set have a checksum: a bit that a disk has flipped in one of them costs
that one, which is counted, and nothing false is shown. SQLite has none for its pages.
"""

from __future__ import annotations

import os
import sqlite3
from typing import Final

from .check import DamagedJournalError
from .derive_state import SCHEMA as DERIVE_SCHEMA
from .trails import SCHEMA as TRAILS_SCHEMA

SCHEMA_VERSION: Final = 2
PAGE_BYTES: Final = 8192
BUSY_S: Final = 10
_LOG_BYTES: Final = 8 << 20
_RESERVE_BYTES: Final = 16 << 20
_RESERVE_SHARE: Final = 4
"""Of a small disk, at most this part of it is reserved (see `storage`)."""

_SCHEMA: Final = """
-- A cursor into another journal must be known as such.
CREATE TABLE identity (id INTEGER NOT NULL);
INSERT INTO identity VALUES (random() & 0x3fffffffffffffff);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, log_dir TEXT NOT NULL, spec BLOB NOT NULL,
    created_ns INTEGER NOT NULL, UNIQUE (name, log_dir));
CREATE TABLE clients (
    id INTEGER PRIMARY KEY, uuid BLOB NOT NULL UNIQUE, run_id INTEGER NOT NULL REFERENCES runs,
    rank INTEGER NOT NULL, attempt INTEGER NOT NULL, pid INTEGER NOT NULL,
    state TEXT NOT NULL, durable_seq INTEGER NOT NULL, dropped INTEGER NOT NULL,
    lost INTEGER NOT NULL, rejected INTEGER NOT NULL, last_step INTEGER);
CREATE TABLE tag_sets (
    client_id INTEGER NOT NULL, id INTEGER NOT NULL, tags BLOB NOT NULL,
    PRIMARY KEY (client_id, id)) WITHOUT ROWID;
CREATE TABLE batches (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run_id INTEGER NOT NULL, client_id INTEGER NOT NULL,
    records INTEGER NOT NULL, total INTEGER NOT NULL, kinds TEXT NOT NULL, data BLOB NOT NULL);
CREATE INDEX batches_of_run ON batches (run_id, id);
CREATE INDEX batches_with_values ON batches (run_id, id) WHERE kinds != '';
CREATE TABLE cursors (name TEXT NOT NULL, run_id INTEGER NOT NULL, row INTEGER NOT NULL,
    PRIMARY KEY (name, run_id)) WITHOUT ROWID;
"""

# Since version 2 began: a journal that was made before has it when it is opened next.
_ADDED: Final = """
CREATE TABLE IF NOT EXISTS alarm_states (
    run_id INTEGER NOT NULL, tag TEXT NOT NULL, state BLOB NOT NULL,
    PRIMARY KEY (run_id, tag)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS worlds (
    client_id INTEGER PRIMARY KEY, world INTEGER NOT NULL, world_size INTEGER NOT NULL);
"""


def open_file(path: str, full_sync: bool) -> sqlite3.Connection:
    """A writing connection to the file at `path`, which is made when there is none.

    Raises:
        DamagedJournalError: it is a database, and no journal.
        sqlite3.Error: it cannot be opened.
    """
    connection = sqlite3.connect(
        path, isolation_level=None, timeout=BUSY_S, check_same_thread=False
    )
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if full_sync else 'NORMAL'}")
        # What a checkpoint may still have to write fits into what is reserved (`storage`).
        log_bytes = min(_LOG_BYTES, reserve_bytes(os.path.dirname(path) or ".") // 2)
        pages = max(1, log_bytes // PAGE_BYTES)
        connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")
        connection.execute(f"PRAGMA journal_size_limit = {2 * log_bytes}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables:
                raise DamagedJournalError("a database of another program")
            connection.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version != SCHEMA_VERSION:
            raise DamagedJournalError(f"version {version} of the journal, not {SCHEMA_VERSION}")
        connection.execute("SELECT count(*) FROM sqlite_sequence").fetchone()
        connection.executescript(_ADDED + TRAILS_SCHEMA + DERIVE_SCHEMA)
        for table, column in (("batches", "crc"), ("tag_sets", "crc"), ("batches", "first_seq")):
            known = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            if column not in known:
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} INTEGER")
    except BaseException:
        connection.close()
        raise
    return connection


def reserve_bytes(directory: str) -> int:
    """How much of the disk of `directory` is reserved for what must go on when it is full."""
    found = os.statvfs(directory)
    whole = found.f_blocks * found.f_frsize or _RESERVE_BYTES * _RESERVE_SHARE
    return max(1, min(_RESERVE_BYTES, whole // _RESERVE_SHARE))

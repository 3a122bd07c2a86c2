"""The journal: the one durable queue between the trainers and the sinks, in SQLite.

One thread writes (ingest); sinks, derivers and the feed read over connections of their own
(`journal_reader`). A row is a batch of records as it came; a client's `durable_seq` is stored in
the same transaction as its rows, which is the whole of deduplication. Rows are numbered without
reuse, so a row number is a cursor. A row leaves when everybody who must read it has passed it and
it is not among the newest `history_bytes`, which `tail --history` and a restarted feed read.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, cast

import msgpack

from sidestep.proto import RunSpec

from . import journal_check
from .journal_reader import (
    kinds_condition,
    kinds_text,
    pack_spec,
    read_alarm_states,
    read_runs,
    read_totals,
    readable_tag_sets,
)
from .trails import SCHEMA as TRAILS_SCHEMA

SCHEMA_VERSION: Final = 2
_CHECKPOINT_BYTES: Final = 1 << 20
_TRIM_ROWS: Final = 2000
"""Rows that one transaction deletes at most, so that it stays short."""

_VACUUM_PAGES: Final = 256
"""Pages that go back to the file system when there was little to delete."""

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
"""


@dataclass(slots=True)
class ClientRow:
    """What the journal knows of a client.

    Attributes:
        durable_seq: records up to here are journalled or counted as dropped.
        dropped: those of them that the client dropped.
        lost: records that the client dropped before they had a number.
        state: ``"live"``, ``"finished"``, ``"lost"``, or ``"daemon"`` for the daemon's own.
    """

    id: int
    uuid: bytes
    run_id: int
    rank: int
    attempt: int
    pid: int
    state: str
    durable_seq: int
    dropped: int
    lost: int
    rejected: int
    last_step: int | None


class Journal:
    """The writing end. One owner, one thread; every change happens inside `transaction`.

    Args:
        path: the database file; its directory must exist.
        full_sync: fsync at every commit (survives a power cut), not only at checkpoints.
        history_bytes: how much of what is written everywhere is kept.
        now_ns: wall time in nanoseconds.
        log: says something to the daemon's log.
    """

    def __init__(
        self,
        path: str,
        *,
        full_sync: bool = False,
        history_bytes: int = 64 << 20,
        now_ns: Callable[[], int] = time.time_ns,
        log: Callable[[str], None] = print,
    ) -> None:
        self.path = path
        self._now_ns = now_ns
        self._history_bytes = history_bytes
        self._connection = journal_check.opened(path, lambda: _open(path, full_sync), log)
        self._marks: deque[tuple[int, int]] = deque()  # (row, bytes since the mark before it)
        self._mark_bytes = self._marked_bytes = 0
        self._floor: int | None = None  # rows up to here are old enough to leave
        self.last_row = self._number("SELECT seq FROM sqlite_sequence WHERE name = 'batches'")
        self.totals = read_totals(self._connection)

    @property
    def connection(self) -> sqlite3.Connection:
        """For what else is stored in the same transactions (`trails`)."""
        return self._connection

    # --- transactions --------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a transaction if none is open."""
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make everything since `begin` durable."""
        if self._connection.in_transaction:
            self._connection.execute("COMMIT")

    def rollback(self) -> None:
        """Undo everything since `begin`."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self.last_row = self._number("SELECT seq FROM sqlite_sequence WHERE name = 'batches'")
        self.totals = read_totals(self._connection)

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    # --- inside a transaction --------------------------------------------------------------

    def put_run(self, spec: RunSpec) -> int:
        """The id of the run that `spec` describes; the newest description is kept."""
        data = pack_spec(spec)
        self._connection.execute(
            "INSERT INTO runs (name, log_dir, spec, created_ns) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (name, log_dir) DO UPDATE SET spec = excluded.spec",
            (spec.name, spec.log_dir, data, self._now_ns()),
        )
        return self._number(
            "SELECT id FROM runs WHERE name = ? AND log_dir = ?", (spec.name, spec.log_dir)
        )

    def put_client(self, client: ClientRow) -> int:
        """Insert or update a client; returns its id."""
        cursor = self._connection.execute(
            "INSERT INTO clients (uuid, run_id, rank, attempt, pid, state, durable_seq, dropped, "
            "lost, rejected, last_step) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (uuid) DO UPDATE SET run_id = excluded.run_id, state = excluded.state, "
            "durable_seq = excluded.durable_seq, dropped = excluded.dropped, "
            "lost = excluded.lost, rejected = excluded.rejected, last_step = excluded.last_step "
            "RETURNING id",
            (
                client.uuid,
                client.run_id,
                client.rank,
                client.attempt,
                client.pid,
                client.state,
                client.durable_seq,
                client.dropped,
                client.lost,
                client.rejected,
                client.last_step,
            ),
        )
        return int(cursor.fetchone()[0])

    def put_tag_set(self, client_id: int, tag_set: int, tags: tuple[str, ...]) -> None:
        """Store a client's tag set."""
        self._connection.execute(
            "INSERT OR REPLACE INTO tag_sets VALUES (?, ?, ?)",
            (client_id, tag_set, msgpack.packb(tags)),
        )

    def append(
        self,
        run_id: int,
        client_id: int,
        records: int,
        data: bytes | memoryview,
        kinds: Iterable[str] = (),
    ) -> int:
        """Append a row that holds values of `kinds` beside numbers; returns its number."""
        total = self.totals.get(run_id, 0) + records
        cursor = self._connection.execute(
            "INSERT INTO batches (run_id, client_id, records, total, kinds, data) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (run_id, client_id, records, total, kinds_text(kinds), data),
        )
        self.totals[run_id] = total
        self.last_row = cast("int", cursor.lastrowid)
        self._mark_bytes += len(data)
        if self._mark_bytes >= _CHECKPOINT_BYTES:
            self._marks.append((self.last_row, self._mark_bytes))
            self._marked_bytes += self._mark_bytes
            self._mark_bytes = 0
            self._age()
        return self.last_row

    def put_cursor(self, name: str, run_id: int, row: int) -> None:
        """Store how far a deriver has come, with what it made."""
        self._connection.execute(
            "INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)", (name, run_id, row)
        )

    def put_alarm_states(self, run_id: int, states: Mapping[str, bytes]) -> None:
        """Store the states of alarms by their tags, with the cursor they belong to."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO alarm_states VALUES (?, ?, ?)",
            [(run_id, tag, state) for tag, state in states.items()],
        )

    def trim(self, passed: Mapping[int, int]) -> bool:
        """Delete rows that everybody has passed and that are not recent history.

        Args:
            passed: run id to the row up to which all its readers have come.

        Returns:
            Whether there may be more to delete.
        """
        if self._floor is None:
            self._floor = self._first_floor()
        self._age()
        more = False
        for run_id, row in passed.items():
            cursor = self._connection.execute(
                "DELETE FROM batches WHERE id IN (SELECT id FROM batches WHERE run_id = ? "
                # The newest row stays: it carries the run's total.
                "AND id <= ? AND id < (SELECT MAX(id) FROM batches WHERE run_id = ?) "
                "ORDER BY id LIMIT ?)",
                (run_id, min(row, self._floor), run_id, _TRIM_ROWS),
            )
            more = more or cursor.rowcount == _TRIM_ROWS
        if not more:
            self._connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        return more

    @property
    def old_row(self) -> int:
        """Rows up to here are no recent history any more."""
        return self._floor or 0

    def _age(self) -> None:
        while self._marks and self._marked_bytes - self._marks[0][1] >= self._history_bytes:
            row, nbytes = self._marks.popleft()
            self._marked_bytes -= nbytes
            if self._floor is not None:
                self._floor = row

    def _first_floor(self) -> int:
        """The newest row that is not recent history, of what an earlier daemon left."""
        nbytes = 0
        cursor = self._connection.execute("SELECT id, length(data) FROM batches ORDER BY id DESC")
        for row, size in cursor:
            nbytes += size
            if nbytes > self._history_bytes:
                return int(row)
        return 0

    # --- reading ---------------------------------------------------------------------------

    def cursors(self, name: str) -> dict[int, int]:
        """How far a deriver has come in each run that has something for it."""
        rows = self._connection.execute("SELECT run_id, row FROM cursors WHERE name = ?", (name,))
        return {int(run_id): int(row) for run_id, row in rows}

    def newest_row_with(self, run_id: int, kinds: Iterable[str]) -> int:
        """The newest row of a run that holds a value of one of `kinds`, or 0."""
        condition, parameters = kinds_condition(kinds)
        sql = f"SELECT max(id) FROM batches WHERE run_id = ? AND {condition}"  # noqa: S608
        found = self._connection.execute(sql, (run_id, *parameters)).fetchone()
        return int(found[0] or 0)

    def alarm_states(self, run_id: int) -> dict[str, bytes]:
        """The states of a run's alarms by their tags."""
        return read_alarm_states(self._connection, run_id)

    def clients(self) -> list[ClientRow]:
        """All clients."""
        rows = self._connection.execute(
            "SELECT id, uuid, run_id, rank, attempt, pid, state, durable_seq, dropped, lost, "
            "rejected, last_step FROM clients"
        )
        return [ClientRow(*row) for row in rows]

    def runs(self) -> dict[int, RunSpec]:
        """All runs by their ids."""
        return read_runs(self._connection)

    def tag_counts(self, client_id: int) -> dict[int, int]:
        """How many tags each of a client's tag sets has."""
        rows = self._connection.execute(
            "SELECT id, tags FROM tag_sets WHERE client_id = ?", (client_id,)
        )
        return {tag_set: len(tags) for tag_set, tags in readable_tag_sets(rows)}

    def tag_set_ids(self, client_id: int) -> dict[tuple[str, ...], int]:
        """The ids of a client's tag sets."""
        rows = self._connection.execute(
            "SELECT id, tags FROM tag_sets WHERE client_id = ?", (client_id,)
        )
        return {tags: tag_set for tag_set, tags in readable_tag_sets(rows)}

    def _number(self, sql: str, parameters: tuple[object, ...] = ()) -> int:
        found = self._connection.execute(sql, parameters).fetchone()
        return int(found[0]) if found else 0


def _open(path: str, full_sync: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
    try:
        connection.execute("PRAGMA page_size = 8192")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if full_sync else 'NORMAL'}")
        connection.execute("PRAGMA wal_autocheckpoint = 1000")
        connection.execute("PRAGMA journal_size_limit = 16777216")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version != SCHEMA_VERSION:
            raise journal_check.DamagedJournalError(
                f"version {version} of the journal, not {SCHEMA_VERSION}"
            )
        connection.execute("SELECT count(*) FROM sqlite_sequence").fetchone()
        connection.executescript(_ADDED + TRAILS_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection

"""The journal: the one durable queue between the trainers and the sinks, in SQLite.

One thread writes (ingest); sinks, derivers and the feed read over connections of their own
(`reader`). A row is a batch of records as it came; a client's `durable_seq` is stored in
the same transaction as its rows, which is the whole of deduplication. Rows are numbered without
reuse, so a row number is a cursor. A row leaves when everybody who must read it has passed it and
it is not among the newest `history_bytes`, which `tail --history` and a restarted feed read.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, cast

from sidestep.proto import RunSpec
from sidestep.proto.tag_sets import packed, reduction_of

from . import check as journal_check
from .file import BUSY_S, PAGE_BYTES, open_file
from .reader import (
    kinds_condition,
    kinds_text,
    pack_spec,
    read_alarm_states,
    read_runs,
    read_totals,
    readable_tag_sets,
    row_crc,
)

_CHECKPOINT_BYTES: Final = 1 << 20
_TRIM_ROWS: Final = 2000
"""Rows that one transaction deletes of a run at most, so that it stays short."""

_TRIM_BYTES: Final = 32 << 20
"""About as many bytes it deletes in all: 100 ms."""

_GENTLE_ROWS: Final = 50
_RECLAIM_PAGES: Final = 64
"""The same of rows and pages, when there is hardly room for the log that it takes."""

_VACUUM_PAGES: Final = 256
"""Pages that go back to the file system when there was little to delete."""


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
        self._connection = journal_check.opened(path, lambda: open_file(path, full_sync), log)
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
        # They speak of rows that are not there any more.
        self._marks.clear()
        self._mark_bytes = self._marked_bytes = 0
        self._floor = None
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
        data = packed(tags)
        self._connection.execute(
            "INSERT OR REPLACE INTO tag_sets (client_id, id, tags, crc) VALUES (?, ?, ?, ?)",
            (client_id, tag_set, data, zlib.crc32(data)),
        )

    def append(
        self,
        run_id: int,
        client_id: int,
        records: int,
        data: bytes | memoryview,
        kinds: Iterable[str] = (),
        first_seq: int | None = None,
    ) -> int:
        """Append a row that holds values of `kinds` beside numbers; returns its number.

        Its records are the client's from `first_seq` on, without a gap.
        """
        total = self.totals.get(run_id, 0) + records
        crc = row_crc(client_id, records, total, data, first_seq)
        cursor = self._connection.execute(
            "INSERT INTO batches (run_id, client_id, records, total, kinds, data, crc, first_seq) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (run_id, client_id, records, total, kinds_text(kinds), data, crc, first_seq),
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

    def trim(self, passed: Mapping[int, int], *, gently: bool = False) -> bool:
        """Delete rows that everybody has passed and that are not recent history.

        Args:
            passed: run id to the row up to which all its readers have come.
            gently: in a transaction that takes little room, for a disk that is full.

        Returns:
            Whether there may be more to delete.
        """
        if self._floor is None:
            self._floor = self._first_floor()
        self._age()
        more = False
        limit = _GENTLE_ROWS if gently else _TRIM_ROWS
        budget = _TRIM_BYTES
        for run_id, row in passed.items():
            # SQLite knows a row's length without reading its data.
            rows = self._connection.execute(
                "SELECT id, length(data) FROM batches WHERE run_id = ? "
                # The newest row stays: it carries the run's total.
                "AND id <= ? AND id < (SELECT MAX(id) FROM batches WHERE run_id = ?) "
                "ORDER BY id LIMIT ?",
                (run_id, min(row, self._floor), run_id, limit),
            ).fetchall()
            last = 0
            for number, nbytes in rows:
                last, budget = number, budget - (nbytes or 0)
                if budget <= 0:
                    break
            if rows:
                self._connection.execute(
                    "DELETE FROM batches WHERE run_id = ? AND id <= ?", (run_id, last)
                )
            more = more or len(rows) == limit or budget <= 0
            if budget <= 0:
                break
        if not more and not gently:
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

    def shorten_history(self) -> None:
        """There is no room: keep less from now on of what everybody has read."""
        pages = self._number("PRAGMA page_count")
        self._history_bytes = min(self._history_bytes // 2, pages * PAGE_BYTES // 4)

    def reclaim(self) -> None:
        """Give room back to a full disk, a little at a time, outside of a transaction.

        Raises:
            sqlite3.Error: even that found no room.
        """
        if self._connection.in_transaction:
            return
        # A reader that is busy just now is not waited for.
        self._connection.execute("PRAGMA busy_timeout = 0")
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._connection.execute(f"PRAGMA incremental_vacuum({_RECLAIM_PAGES})").fetchall()
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000}")

    def _first_floor(self) -> int:
        """The newest row that is not recent history, of what an earlier daemon left."""
        nbytes = 0
        cursor = self._connection.execute("SELECT id, length(data) FROM batches ORDER BY id DESC")
        for row, size in cursor:
            if nbytes >= self._history_bytes:
                return int(row)
            nbytes += size
        return 0

    # --- reading ---------------------------------------------------------------------------

    def identity(self) -> int:
        """A random number: another journal has another."""
        return self._number("SELECT id FROM identity")

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

    def durable_seq(self, uuid: bytes) -> int:
        """Up to which number everything of a client is known; 0 of one that is not."""
        return self._number("SELECT durable_seq FROM clients WHERE uuid = ?", (uuid,))

    def runs(self) -> dict[int, RunSpec]:
        """All runs by their ids."""
        return read_runs(self._connection)

    def tag_counts(self, client_id: int) -> dict[int, int]:
        """How many tags each of a client's tag sets has."""
        return {tag_set: len(tags) for tag_set, tags in self._tag_sets(client_id)}

    def reduced_tag_sets(self, client_id: int) -> set[int]:
        """Those of a client's tag sets whose numbers are to be reduced over ranks."""
        return {tag_set for tag_set, tags in self._tag_sets(client_id) if reduction_of(tags)}

    def tag_set_ids(self, client_id: int) -> dict[tuple[str, ...], int]:
        """The ids of a client's tag sets."""
        return {tags: tag_set for tag_set, tags in self._tag_sets(client_id)}

    def _tag_sets(self, client_id: int) -> Iterator[tuple[int, tuple[str, ...]]]:
        sql = "SELECT id, tags FROM tag_sets WHERE client_id = ?"
        return readable_tag_sets(self._connection.execute(sql, (client_id,)))

    def _number(self, sql: str, parameters: tuple[object, ...] = ()) -> int:
        found = self._connection.execute(sql, parameters).fetchone()
        return int(found[0]) if found else 0

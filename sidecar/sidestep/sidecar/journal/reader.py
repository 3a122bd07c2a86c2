"""The journal's reading end: rows after a cursor, and what is needed to understand them."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from struct import Struct, error as struct_error
from typing import Any, Final, cast

import msgpack

from sidestep.proto import RemoteProtocolError, RunSpec
from sidestep.proto.tag_sets import parsed

from .derive_state import DeriveState, derive_state

_COUNTS: Final = Struct("<qqq")
_SEQ: Final = Struct("<q")
_NO_ROW: Final = (1 << 63) - 1
"""After every row."""

# SQLite gives back what a page says, of any type. A bad row must be known as such, and be passed.
_COLUMNS: Final = (
    "id, coalesce(CAST(client_id AS INTEGER), 0), max(0, coalesce(CAST(records AS INTEGER), 0)), "
    "max(0, coalesce(CAST(total AS INTEGER), 0)), coalesce(CAST(data AS BLOB), x'')"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `records` records of one client, and how many the run had with it (`total`).

    Attributes:
        data: the records; nothing when they are not what was written.
        first_seq: the client's number of the first of them; None in a row that has none.
        damaged: whether they are not.
    """

    id: int
    client_id: int
    records: int
    total: int
    data: bytes
    first_seq: int | None = None
    damaged: bool = False


class JournalReader:
    """A reading end, for one thread of any process.

    Args:
        path: the database file that the daemon writes.
    """

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(
            f"file:{_quoted(path)}?mode=ro", uri=True, isolation_level=None, timeout=10
        )
        self._tag_sets: dict[int, dict[int, tuple[str, ...]]] = {}
        self._columns = ""

    @property
    def connection(self) -> sqlite3.Connection:
        """For what else is read of the same file (`worlds`)."""
        return self._connection

    def identity(self) -> int:
        """A random number: another journal, also one that took this one's place, has another."""
        (found,) = self._connection.execute("SELECT id FROM identity").fetchone()
        return int(found)

    def rows(
        self,
        after: int,
        run_id: int | None = None,
        *,
        kinds: Iterable[str] | None = None,
        max_bytes: int = 4 << 20,
        until: int | None = None,
    ) -> list[Row]:
        """Rows after row `after`, in order, until they have `max_bytes` together (at least one).

        Read in one go: a long read would keep the write-ahead log from shrinking.
        """
        sql = f"SELECT {self._columns or self._known()} FROM batches WHERE id > ?"  # noqa: S608
        parameters: list[int | str] = [after]
        if until is not None:
            sql, parameters = sql + " AND id <= ?", [*parameters, until]
        if run_id is not None:
            sql, parameters = sql + " AND run_id = ?", [*parameters, run_id]
        if kinds is not None:
            condition, texts = kinds_condition(kinds)
            sql, parameters = f"{sql} AND {condition}", [*parameters, *texts]
        found: list[Row] = []
        nbytes = 0
        cursor = self._connection.execute(sql + " ORDER BY id", parameters)
        try:
            for *values, crc in cursor:
                found.append(_whole(Row(*values), crc))
                nbytes += len(found[-1].data)
                if nbytes >= max_bytes:
                    break
        finally:
            cursor.close()
        return found

    def _known(self) -> str:
        """What is asked of a row; a journal that no daemon has opened since lacks some of it."""
        columns = {str(row[1]) for row in self._connection.execute("PRAGMA table_info(batches)")}
        added = [name if name in columns else "NULL" for name in ("first_seq", "crc")]
        self._columns = ", ".join((_COLUMNS, *added))
        return self._columns

    def tag_sets(self, client_id: int, refresh: bool = False) -> Mapping[int, tuple[str, ...]]:
        """A client's tag sets; asks the database again only with `refresh`."""
        new = client_id not in self._tag_sets
        known = self._tag_sets.setdefault(client_id, {})
        if refresh or new:
            # They are numbered in their order: what is new has higher numbers, as a rule.
            after = max(known, default=-1)
            if not self._read_tag_sets(client_id, after, known) and after >= 0:
                self._read_tag_sets(client_id, -1, known)
        return known

    def _read_tag_sets(self, client_id: int, after: int, into: dict[int, tuple[str, ...]]) -> int:
        rows = self._connection.execute(
            "SELECT id, tags FROM tag_sets WHERE client_id = ? AND id > ?", (client_id, after)
        ).fetchall()
        into.update(readable_tag_sets(rows))
        return len(rows)

    def new_tag_sets(self, client_id: int, first: int) -> Iterator[tuple[int, tuple[str, ...]]]:
        """A client's tag sets from number `first` on, in order; none is kept here."""
        rows = self._connection.execute(
            "SELECT id, tags FROM tag_sets WHERE client_id = ? AND id >= ? ORDER BY id",
            (client_id, first),
        )
        return readable_tag_sets(rows.fetchall())

    def clients_of(self, run_id: int) -> list[tuple[object, ...]]:
        """What the journal knows of a run's clients: as `forwarding.passengers` reads it."""
        return self._connection.execute(
            "SELECT c.id, c.uuid, c.rank, c.attempt, c.pid, c.state, c.durable_seq, c.dropped, "
            "c.lost, c.rejected, b.emitted, i.hello FROM clients c "
            "LEFT JOIN client_books b ON b.client_id = c.id "
            "LEFT JOIN introductions i ON i.client_id = c.id WHERE c.run_id = ?",
            (run_id,),
        ).fetchall()

    def run_of_client(self, client_id: int) -> int:
        """The run of a client."""
        found = self._connection.execute(
            "SELECT run_id FROM clients WHERE id = ?", (client_id,)
        ).fetchone()
        return int(found[0]) if found else 0

    def client(self, client_id: int) -> tuple[int, str]:
        """The run of a client, and the client's state, ``daemon`` for the daemon's own sources."""
        found = self._connection.execute(
            "SELECT run_id, state FROM clients WHERE id = ?", (client_id,)
        ).fetchone()
        return (int(found[0]), str(found[1])) if found else (0, "")

    def newest(self, run_id: int) -> tuple[int, int]:
        """A run's newest row, and how many records it had with that; (0, 0) when none is left."""
        found = self._connection.execute(
            "SELECT id, coalesce(CAST(total AS INTEGER), 0) FROM batches WHERE run_id = ? "
            "ORDER BY id DESC LIMIT 1",
            (run_id,),
        ).fetchone()
        return (int(found[0]), int(found[1])) if found else (0, 0)

    def beginning(self, run_id: int) -> tuple[int, int]:
        """The row before a run's oldest row, and how many records of the run came before that.

        Records that are counted there and that a sink has not written are gone.
        """
        found = self._connection.execute(
            "SELECT id - 1, total - records FROM batches WHERE run_id = ? ORDER BY id LIMIT 1",
            (run_id,),
        ).fetchone()
        return (int(found[0]), int(found[1])) if found else (0, 0)

    def sizes(self, run_id: int, after: int, until: int, limit: int) -> list[tuple[int, int]]:
        """The next `limit` rows of a run after row `after`, up to `until`: id, and bytes of data.

        SQLite knows a row's length without reading its data.
        """
        return self._connection.execute(
            "SELECT id, length(data) FROM batches WHERE run_id = ? AND id > ? AND id <= ? "
            "ORDER BY id LIMIT ?",
            (run_id, after, until, limit),
        ).fetchall()

    def total(self, run_id: int, until: int = _NO_ROW) -> int:
        """How many records a run has had, up to row `until`; 0 when none of its rows is left."""
        found = self._connection.execute(
            "SELECT total FROM batches WHERE run_id = ? AND id <= ? ORDER BY id DESC LIMIT 1",
            (run_id, until),
        ).fetchone()
        return int(found[0]) if found else 0

    def derived(self, name: str, run_id: int) -> tuple[int, dict[str, bytes]]:
        """How far a deriver has come in a run, and the alarms' states as they were then."""
        row, alarms, _ = self.deriving(name, run_id)
        return row, alarms

    def deriving(self, name: str, run_id: int) -> tuple[int, dict[str, bytes], DeriveState]:
        """The same, and what the reductions of the run await, as it was then."""
        with self._connection:
            self._connection.execute("BEGIN")
            found = self._connection.execute(
                "SELECT row FROM cursors WHERE name = ? AND run_id = ?", (name, run_id)
            ).fetchone()
            alarms = read_alarm_states(self._connection, run_id)
            row = int(found[0]) if found else 0
            return row, alarms, derive_state(self._connection, run_id)

    def runs(self) -> dict[int, RunSpec]:
        """All runs by their ids."""
        return read_runs(self._connection)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def row_crc(
    client_id: int, records: int, total: int, data: bytes | memoryview, first_seq: int | None = None
) -> int:
    """The checksum that is stored with a row of records."""
    head = zlib.crc32(_COUNTS.pack(client_id, records, total))
    if first_seq is not None:  # a row that has none is older than these
        head = zlib.crc32(_SEQ.pack(first_seq), head)
    return zlib.crc32(data, head)


def _whole(row: Row, crc: object) -> Row:
    if crc is None or crc == _crc_of(row):
        return row
    return replace(row, data=b"", first_seq=None, damaged=True)


def _crc_of(row: Row) -> int | None:
    """What the checksum must be; None of a number that cannot be one."""
    try:
        return row_crc(row.client_id, row.records, row.total, row.data, row.first_seq)
    except struct_error:
        return None


def pack_spec(spec: RunSpec) -> bytes:
    """A run's description as it is stored."""
    fields: dict[str, Any] = {
        "name": spec.name,
        "log_dir": spec.log_dir,
        "tensorboard": shown if isinstance(shown := spec.tensorboard, bool) else dict(shown),
        "wandb": None if spec.wandb is None else dict(spec.wandb),
        "config": dict(spec.config),
        "tags": list(spec.tags),
    }
    return cast("bytes", msgpack.packb(fields))


def unpack_spec(data: bytes) -> RunSpec:
    """A run's description as it was stored."""
    fields = cast("dict[str, Any]", msgpack.unpackb(data))
    fields["tags"] = tuple(fields["tags"])
    return RunSpec(**fields)


def rows_iterator(reader: JournalReader, after: int, until: int) -> Iterator[Row]:
    """All rows after `after` up to `until`, a few megabytes at a time."""
    while rows := reader.rows(after, until=until):
        yield from rows
        after = rows[-1].id


def readable_tag_sets(
    rows: Iterable[tuple[object, object]],
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Tag sets by their ids, out of what the journal has; one that is damaged is not defined."""
    for tag_set, data in rows:
        if not isinstance(tag_set, int) or not isinstance(data, bytes):
            continue
        try:
            tags = parsed(msgpack.unpackb(data))
        except (ValueError, msgpack.UnpackException, RemoteProtocolError):
            continue
        # Of any length: a deriver puts its suffix behind the longest tag that a client may have.
        if tags and all(isinstance(tag, str) for tag in tags):  # pyright: ignore[reportUnnecessaryIsInstance]
            yield tag_set, tags


def kinds_text(kinds: Iterable[str]) -> str:
    """Kinds as one text in which a kind can be found by its delimiters."""
    return "".join(f",{kind}," for kind in sorted(kinds))


def kinds_condition(kinds: Iterable[str]) -> tuple[str, list[str]]:
    """The SQL that finds rows with a value of any of `kinds`, and its parameters."""
    texts = [kinds_text([kind]) for kind in kinds]
    return f"kinds != '' AND ({' OR '.join(['instr(kinds, ?)'] * len(texts))})", texts


def read_alarm_states(connection: sqlite3.Connection, run_id: int) -> dict[str, bytes]:
    """The states of a run's alarms by their tags."""
    rows = connection.execute("SELECT tag, state FROM alarm_states WHERE run_id = ?", (run_id,))
    return {str(tag): bytes(state) for tag, state in rows}


def read_runs(connection: sqlite3.Connection) -> dict[int, RunSpec]:
    """All runs by their ids."""
    rows = connection.execute("SELECT id, spec FROM runs ORDER BY id")
    return {int(run_id): unpack_spec(spec) for run_id, spec in rows}


def read_totals(connection: sqlite3.Connection) -> dict[int, int]:
    """How many records each run has had: its newest row says so, found through the index."""
    rows = connection.execute(
        "SELECT runs.id, (SELECT total FROM batches WHERE run_id = runs.id "
        "ORDER BY id DESC LIMIT 1) FROM runs"
    )
    return {int(run): int(total or 0) for run, total in rows}


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")

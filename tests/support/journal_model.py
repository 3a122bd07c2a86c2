"""What a journal must hold: a model of it in plain Python, and the same operations on a real one.

An operation is a list that JSON can carry, its name first: ``["begin"]``, ``["run", run]``,
``["client", client, run, durable_seq]``, ``["tags", client, set, [tag, ...]]``, ``["append", run,
client, records, bytes, [kind, ...]]``, ``["cursor", run, row]``, ``["alarm", run, tag, text]``,
``["trim", {run: row}]``, ``["commit"]``, ``["rollback"]``, ``["reopen"]``. Runs and clients are
small numbers of the script's own; what speaks of one that is not there is left out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack

from sidestep.proto import RunSpec
from sidestep.sidecar.journal import writer as journal_module
from sidestep.sidecar.journal.reader import kinds_text, pack_spec, unpack_spec
from sidestep.sidecar.journal.writer import ClientRow, Journal

Op = list[Any]

HISTORY_BYTES: Final = 20_000
CURSOR: Final = "derive"

# Each row a mark of its own, or a short script would never have any; and checkpoints within it.
journal_module._CHECKPOINT_BYTES = 1  # type: ignore[misc]
_CHECKPOINT_PAGES: Final = 12


@dataclass
class Contents:
    """What is in a journal, as plain values that can be compared."""

    runs: dict[int, RunSpec] = field(default_factory=dict[int, RunSpec])
    clients: dict[int, tuple[Any, ...]] = field(default_factory=dict[int, tuple[Any, ...]])
    tag_sets: dict[tuple[int, int], tuple[str, ...]] = field(
        default_factory=dict[tuple[int, int], tuple[str, ...]]
    )
    rows: dict[int, tuple[Any, ...]] = field(default_factory=dict[int, tuple[Any, ...]])
    cursors: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])
    alarms: dict[tuple[int, str], bytes] = field(default_factory=dict[tuple[int, str], bytes])
    last_row: int = 0

    def copy(self) -> Contents:
        """The same, in dictionaries of its own; what is in them never changes."""
        return Contents(
            *(dict(getattr(self, name)) for name in list(self.__dataclass_fields__)[:-1]),
            last_row=self.last_row,
        )


class Model:
    """The journal as it should be.

    Attributes:
        durable: what a journal that is opened now holds.
        now: what the open transaction has made of it.
        in_transaction: whether one is open.
    """

    def __init__(self, durable: Contents | None = None) -> None:
        self.durable = durable or Contents()
        self.now = self.durable.copy()
        self.in_transaction = False
        self._forget()

    def _forget(self) -> None:
        """What the object, and not the file, knows."""
        self._marks: list[tuple[int, int]] = []
        self._floor: int | None = None

    def applies(self, op: Op) -> bool:
        """Whether the operation makes sense now; if not, it is left out everywhere."""
        match op:
            case ["begin" | "reopen"]:
                return not self.in_transaction
            case ["client", _, run, _] | ["cursor" | "alarm", run, *_]:
                return self.in_transaction and run + 1 in self.now.runs
            case ["tags", client, *_]:
                return self.in_transaction and self._client(client) is not None
            case ["append", run, client, *_]:
                known = run + 1 in self.now.runs and self._client(client) is not None
                return self.in_transaction and known
            case ["trim", passed]:
                return self.in_transaction and all(int(run) + 1 in self.now.runs for run in passed)
            case _:
                return self.in_transaction

    def apply(self, op: Op) -> None:
        """Do what the operation does."""
        now = self.now
        match op:
            case ["begin"]:
                self.in_transaction = True
            case ["commit"]:
                self.in_transaction = False
                self.durable = now.copy()
            case ["rollback"]:
                self.in_transaction = False
                self.now = self.durable.copy()
                self._forget()
            case ["reopen"]:
                self._forget()
            case ["run", run]:
                # Runs come in any order, and have their ids in that of their coming.
                now.runs[run + 1] = spec(run, len(now.runs))
            case ["client", client, run, durable]:
                found = self._client(client) or len(now.clients) + 1
                now.clients[found] = client_values(client, run, durable)
            case ["tags", client, tag_set, tags]:
                now.tag_sets[self._known(client), tag_set] = tuple(tags)
            case ["append", run, client, records, nbytes, kinds]:
                self._append(run + 1, self._known(client), records, nbytes, kinds)
            case ["cursor", run, row]:
                now.cursors[CURSOR, run + 1] = row
            case ["alarm", run, tag, text]:
                now.alarms[run + 1, tag] = text.encode()
            case ["trim", passed]:
                self._trim({int(run) + 1: row for run, row in passed.items()})
            case _:
                raise ValueError(f"no operation: {op}")

    def _client(self, client: int) -> int | None:
        return next((i for i, v in self.now.clients.items() if v[0] == uuid(client)), None)

    def _known(self, client: int) -> int:
        found = self._client(client)
        assert found is not None
        return found

    def _append(self, run: int, client: int, records: int, nbytes: int, kinds: list[str]) -> None:
        now = self.now
        now.last_row += 1
        before = max((v[3] for v in now.rows.values() if v[0] == run), default=0)
        data = content(now.last_row, nbytes)
        now.rows[now.last_row] = (run, client, records, before + records, kinds_text(kinds), data)
        self._marks.append((now.last_row, nbytes))

    def _trim(self, passed: dict[int, int]) -> None:
        """Rows leave that were passed, but the newest of a run and recent history."""
        rows = self.now.rows
        if self._floor is None:
            nbytes = 0
            self._floor = 0
            for row in sorted(rows, reverse=True):
                if nbytes >= HISTORY_BYTES:
                    self._floor = row
                    break
                nbytes += len(rows[row][5])
        while self._marks and sum(n for _, n in self._marks[1:]) >= HISTORY_BYTES:
            self._floor = self._marks.pop(0)[0]
        for run, row in passed.items():
            its = [number for number, values in rows.items() if values[0] == run]
            for number in its:
                if number <= min(row, self._floor) and number < max(its):
                    del rows[number]


def uuid(client: int) -> bytes:
    """The name of a script's client."""
    return bytes([client]) * 16


def spec(run: int, version: int) -> RunSpec:
    """A description of a script's run."""
    return RunSpec(f"run {run}", "/logs", config={"version": version}, tags=("a", "β"))


def client_values(client: int, run: int, durable: int) -> tuple[Any, ...]:
    """A client's columns but its id."""
    return (uuid(client), run + 1, 0, 0, 1, "live", durable, durable // 3, 0, 1, durable or None)


def content(row: int, nbytes: int) -> bytes:
    """What lies in a row: no two rows the same."""
    return (row.to_bytes(4, "little") * (nbytes // 4 + 1))[:nbytes]


def normal(script: Sequence[Op]) -> list[Op]:
    """The script without what does not apply, and ended by a commit if one is open."""
    model, kept = Model(), []
    for op in [*script, ["commit"]]:
        if op[0] == "run" and op[1] != len(model.now.runs) and op[1] + 1 not in model.now.runs:
            continue  # ids are given in the order of coming
        if model.applies(op):
            model.apply(op)
            kept.append(op)
    return kept


def states(script: Sequence[Op]) -> list[Contents]:
    """What is durable before the first operation, and after each."""
    model = Model()
    found = [model.durable.copy()]
    for op in script:
        model.apply(op)
        found.append(model.durable)
    return found


# --- the real one --------------------------------------------------------------------------------


def open_journal(path: str) -> Journal:
    """A journal with little history, and checkpoints after a few pages."""
    journal = Journal(path, history_bytes=HISTORY_BYTES, now_ns=lambda: 1, log=lambda _text: None)
    journal._connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    return journal


def play(say: Callable[[Any], None], *, path: str, script: list[Op], retry: bool = False) -> None:
    """Do the script; says the number of each operation that has returned.

    With `retry`, a transaction in which anything fails is rolled back and done again, as by ingest.
    """
    journal = _opened(path, retry)
    began = at = 0
    failures = 0
    model = Model()
    while at < len(script):
        op = script[at]
        if op[0] == "begin":
            began = at
            before = model.durable.copy()
        if op[0] == "reopen":
            journal.close()
            journal = _opened(path, retry)
        else:
            try:
                _do(journal, op, model)
            except sqlite3.Error:
                failures += 1
                if not retry or failures > 100:
                    raise
                try:
                    journal.rollback()
                except sqlite3.Error:
                    pass
                model, at = Model(before), began
                continue
        model.apply(op)
        say(at)
        at += 1
    journal.close()


def _opened(path: str, retry: bool) -> Journal:
    for _ in range(100 if retry else 1):
        try:
            return open_journal(path)
        except sqlite3.Error as error:
            last = error
    raise last


def _do(journal: Journal, op: Op, model: Model) -> None:
    match op:
        case ["begin"]:
            journal.begin()
        case ["commit"]:
            journal.commit()
        case ["rollback"]:
            journal.rollback()
        case ["run", run]:
            assert journal.put_run(spec(run, len(model.now.runs))) == run + 1
        case ["client", client, run, durable]:
            row = ClientRow(0, *client_values(client, run, durable))
            expected = model._client(client) or len(model.now.clients) + 1
            assert journal.put_client(row) == expected
        case ["tags", client, tag_set, tags]:
            journal.put_tag_set(model._known(client), tag_set, tuple(tags))
        case ["append", run, client, records, nbytes, kinds]:
            data = content(model.now.last_row + 1, nbytes)
            row = journal.append(run + 1, model._known(client), records, data, kinds)
            assert row == model.now.last_row + 1
        case ["cursor", run, row]:
            journal.put_cursor(CURSOR, run + 1, row)
        case ["alarm", run, tag, text]:
            journal.put_alarm_states(run + 1, {tag: text.encode()})
        case ["trim", passed]:
            journal.trim({int(run) + 1: row for run, row in passed.items()})
        case _:
            raise ValueError(f"no operation: {op}")


def read(path: str) -> Contents:
    """What is in the journal at `path`, which must be whole; by SQL of the test's own."""
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = Contents()
        for run_id, data in connection.execute("SELECT id, spec FROM runs"):
            found.runs[run_id] = unpack_spec(data)
            assert pack_spec(found.runs[run_id]) == data
        columns = "id, uuid, run_id, rank, attempt, pid, state, durable_seq, dropped, lost"
        columns += ", rejected, last_step"
        for number, *values in connection.execute(f"SELECT {columns} FROM clients"):
            found.clients[number] = tuple(values)
        for client, tag_set, tags in connection.execute("SELECT client_id, id, tags FROM tag_sets"):
            found.tag_sets[client, tag_set] = tuple(msgpack.unpackb(tags))
        columns = "id, run_id, client_id, records, total, kinds, data"
        for number, *values in connection.execute(f"SELECT {columns} FROM batches"):
            found.rows[number] = tuple(values)
        for name, run, row in connection.execute("SELECT name, run_id, row FROM cursors"):
            found.cursors[name, run] = row
        for run, tag, state in connection.execute("SELECT run_id, tag, state FROM alarm_states"):
            found.alarms[run, tag] = state
        newest = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'batches'")
        found.last_row = next(iter(newest), (0,))[0]
        return found
    finally:
        connection.close()

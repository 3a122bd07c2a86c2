"""Whatever the columns of a journal row hold, its readers pass it and write the rows after it."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgpack

from sidestep.proto import RunSpec, Scalars, Value
from sidestep.proto.records import encode_scalars, encode_value
from sidestep.sidecar.journal.reader import JournalReader
from sidestep.sidecar.journal.writer import ClientRow, Journal
from sidestep.sidecar.live.feed import scalar_rows
from sidestep.sidecar.worker import Worker
from tests.unit.proto.strategies import values

from .. import scratch
from ..mutator import mutate_packed
from ..seeds import drawn
from . import records

_COLUMNS = ("records", "total", "kinds", "data")
_SQLITE = (int, float, str, bytes, type(None))


class Bench:
    """A journal with one row to be spoilt and a good one after it."""

    def __init__(self) -> None:
        self.folder = scratch.empty("rows")
        self.spec = RunSpec("run", str(self.folder / "logs"))
        self.path = str(self.folder / "journal.sqlite")
        self.journal = Journal(self.path)
        self.journal.begin()
        self.run_id = self.journal.put_run(self.spec)
        self.client_id = self.journal.put_client(
            ClientRow(0, b"u" * 16, self.run_id, 0, 0, 1, "live", 0, 0, 0, 0, None)
        )
        for tag_set, tags in records.TAG_SETS.items():
            self.journal.put_tag_set(self.client_id, tag_set, tags)
        self.bad = self._append(encode_scalars(Scalars(0, 1, 1, (1.0,))))
        # Of another client, whose tag sets nobody spoils.
        good = ClientRow(0, b"g" * 16, self.run_id, 0, 0, 1, "live", 0, 0, 0, 0, None)
        self.client_id = self.journal.put_client(good)
        self.journal.put_tag_set(self.client_id, 0, ("loss",))
        self.good = self._append(encode_scalars(Scalars(0, 2, 2, (2.0,))))
        self.journal.commit()

    def _append(self, data: bytes) -> int:
        return self.journal.append(self.run_id, self.client_id, 1, data)

    def spoil(self, columns: dict[str, Any], tags: Any) -> None:
        """Give the first row these columns, and its client's third tag set these tags."""
        connection = self.journal._connection
        for name, value in columns.items():
            connection.execute(f"UPDATE batches SET {name} = ? WHERE id = ?", (value, self.bad))
        connection.execute("UPDATE tag_sets SET tags = ? WHERE client_id = 1 AND id = 2", (tags,))


@cache
def bench() -> Bench:
    """One for the process; a row is spoilt anew for each input."""
    return Bench()


def check(data: bytes) -> None:
    """[columns of the row, tags]: what SQLite would give back after a flipped bit, or worse."""
    try:
        columns, tags = msgpack.unpackb(data, strict_map_key=False)
        columns = {name: x for name in _COLUMNS if _storable(x := columns.get(name))}
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException):
        return
    if not _storable(tags):
        return
    # NOT NULL is SQLite's to keep: it reads back what a page says all the same.
    columns = {name: value for name, value in columns.items() if value is not None}
    made = bench()
    made.spoil(columns, b"" if tags is None else tags)
    for sink in ("tensorboard", "archive"):
        _written(made, sink)
    reader = JournalReader(made.path)
    try:
        for row in reader.rows(0):
            scalar_rows(reader, row)
    finally:
        reader.close()


def _storable(value: Any) -> bool:
    if value != value:
        return False  # NaN is NULL to SQLite
    if isinstance(value, str):
        return value.isprintable()
    return isinstance(value, _SQLITE) and (type(value) is not int or -(2**63) <= value < 2**63)


def _written(made: Bench, sink: str) -> None:
    """A worker copies both rows in one go, whatever the first one is."""
    shutil.rmtree(made.spec.log_dir, ignore_errors=True)
    said: list[dict[str, Any]] = []
    cursor = made.folder / f"{sink}.cursor"
    cursor.unlink(missing_ok=True)
    worker = Worker(sink, made.run_id, made.spec, made.path, str(cursor), said.append)
    worker._reader = JournalReader(made.path)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            worker._open()
            while worker._copy_some():
                pass
            worker._close(finished=False)
        finally:
            worker._reader.close()
    assert said[-1]["row"] == made.good, "the row after it is written"


mutate = mutate_packed


def seeds() -> Iterator[bytes]:
    """Good rows of every form, and the types that a column may have."""
    for batch in records.some_records():
        yield _packed({"records": len(batch), "data": records.encoded(batch)})
    for value in drawn(values, 5):
        yield _packed({"kinds": f",{value.kind},", "data": b"".join(encode_value(value)[1])})
    image = Value("image", "i", 1, 1, {"layout": "HW"})
    yield _packed({"data": b"".join(encode_value(image)[1])})
    for odd in (None, 5, 1.5, "text", b""):
        yield _packed({"data": odd, "records": odd, "total": odd, "kinds": odd}, odd)
    yield _packed({}, msgpack.packb({"no": "list"}))
    yield _packed({}, msgpack.packb([1, None, "x"]))


def _packed(columns: dict[str, Any], tags: Any = None) -> bytes:
    tags = msgpack.packb(list(records.TAG_SETS[2])) if tags is None else tags
    return bytes(msgpack.packb([{"records": 1, "total": 1, "kinds": "", **columns}, tags]))


def noise(rng: random.Random) -> bytes:
    """A row of nothing but noise."""
    return _packed({"data": rng.randbytes(64)})

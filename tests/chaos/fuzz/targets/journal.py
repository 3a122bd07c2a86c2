"""A journal with any byte changed, cut or inserted opens, or is put aside, and works after it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from struct import Struct

from sidestep.proto import RunSpec, Scalars
from sidestep.proto.records import encode_scalars
from sidestep.sidecar.alarms import states_of
from sidestep.sidecar.journal.reader import JournalReader
from sidestep.sidecar.journal.writer import ClientRow, Journal

from .. import scratch
from ..mutator import mutate_bytes
from ..packing import join, pieces, pieces_mutator

_AT = Struct("<I")
_SPEC = RunSpec("run", "/logs", config={"lr": 0.1})


@cache
def whole() -> bytes:
    """A journal of one run with a client, tag sets, an alarm's state and some rows."""
    path = scratch.empty("whole") / "journal.sqlite"
    journal = Journal(str(path), now_ns=lambda: 1)
    journal.begin()
    run_id = journal.put_run(_SPEC)
    client = ClientRow(0, b"u" * 16, run_id, 0, 0, 1, "live", 30, 0, 0, 0, 5)
    client_id = journal.put_client(client)
    journal.put_tag_set(client_id, 0, ("loss",))
    journal.put_tag_set(client_id, 1, ("a", "b", "c"))
    for step in range(30):
        row = encode_scalars(Scalars(0, step, step, (0.5,)))
        journal.append(run_id, client_id, 1, row, ("moments",) if step % 7 == 0 else ())
    journal.put_cursor("derive", run_id, 3)
    journal.put_alarm_states(run_id, {"t": b"\x80"})
    journal._connection.execute("UPDATE identity SET id = 42")
    journal.commit()
    journal.close()
    return path.read_bytes()


def damaged(data: bytes) -> bytes:
    """The journal after what the pieces of `data` say: overwrite, insert, cut out, cut off."""
    found = bytearray(whole())
    for operation, piece in pieces(data)[:16]:
        if len(piece) < _AT.size:
            continue
        at = _AT.unpack_from(piece)[0] % (len(found) + 1)
        rest = piece[_AT.size :]
        match operation % 4:
            case 0:
                found[at : at + len(rest)] = rest
            case 1:
                found[at:at] = rest
            case 2:
                del found[at : at + 1 + len(rest)]
            case _:
                del found[at:]
    return bytes(found)


def check(data: bytes) -> None:
    """A damaged file where the journal is expected."""
    folder = scratch.empty("journal")
    path = folder / "journal.sqlite"
    path.write_bytes(damaged(data))
    said: list[str] = []
    journal = Journal(str(path), log=said.append)
    try:
        _used(journal)
        _read(path)
    except sqlite3.DatabaseError:
        # What no reader met at the start shows later; the journal must not be opened like that
        # for ever.
        journal.close()
        Journal(str(path), log=said.append).close()
    finally:
        journal.close()


def _used(journal: Journal) -> None:
    """What ingest does at its start and in its first round."""
    runs = journal.runs()
    for client in journal.clients():
        assert client.run_id in runs or client.state == "daemon"
        journal.tag_counts(client.id)
    for run_id in runs:
        journal.newest_row_with(run_id, ("moments",))
        states_of(journal.alarm_states(run_id))
    journal.cursors("derive")
    journal.begin()
    run_id = journal.put_run(_SPEC)
    client_id = journal.put_client(ClientRow(0, b"n" * 16, run_id, 0, 0, 1, "live", *[0] * 4, None))
    journal.put_tag_set(client_id, 0, ("loss",))
    row = journal.append(run_id, client_id, 1, encode_scalars(Scalars(0, 1, 1, (2.0,))))
    journal.commit()
    assert row == journal.last_row


def _read(path: Path) -> None:
    """What a worker reads."""
    reader = JournalReader(str(path))
    try:
        reader.identity()
        for run_id in reader.runs():
            for row in reader.rows(0, run_id):
                reader.tag_sets(row.client_id, refresh=True)
            reader.total(run_id)
            reader.derived("derive", run_id)
    finally:
        reader.close()


def mutate_piece(data: bytes, rng: random.Random) -> bytes:
    """Mostly a byte that is not zero in the file is named: pages are mostly empty."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    file = whole()
    while not file[at := rng.randrange(len(file))]:
        pass
    return _AT.pack(at) + (data[_AT.size :] or rng.randbytes(1))


mutate = pieces_mutator(mutate_piece)


def seeds() -> Iterator[bytes]:
    """No damage, a torn tail, another file, and some flipped bytes."""
    yield b""
    size = len(whole())
    yield join([(3, _AT.pack(size - 100))])
    yield join([(3, _AT.pack(0))])
    yield join([(0, _AT.pack(0) + b"not a database at all")])
    yield join([(2, _AT.pack(8192) + bytes(4096))])
    rng = random.Random(0)
    for _ in range(30):
        yield join([(0, mutate_piece(b"", rng)) for _ in range(3)])

"""What the journal keeps of how its clients introduced themselves, for whoever passes them on.

Beside a client's row, in the same transactions. Its run, its outbox and what changes with every
connection are left out: what is said anew without anything new in it need not be stored.
"""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Final

from sidestep.proto import Hello, RemoteProtocolError, RunSpec, decode, encode

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS introductions (client_id INTEGER PRIMARY KEY, hello BLOB NOT NULL)
"""

_NO_RUN: Final = RunSpec("", "")


def lasting(hello: Hello) -> Hello:
    """What of an introduction is stored."""
    return replace(hello, run=_NO_RUN, outbox="", connection=0, acked_seq=0, acked_dropped=0)


def put_introduction(connection: sqlite3.Connection, client_id: int, hello: Hello) -> None:
    """Store what is `lasting`."""
    row = client_id, encode(hello)
    connection.execute("INSERT OR REPLACE INTO introductions VALUES (?, ?)", row)


def stored_introductions(connection: sqlite3.Connection) -> dict[int, Hello]:
    """All that is stored, by the clients' ids."""
    connection.execute(_SCHEMA)  # a journal may be older than it
    rows = connection.execute("SELECT client_id, hello FROM introductions")
    found = {int(client_id): read_introduction(data) for client_id, data in rows}
    return {client_id: hello for client_id, hello in found.items() if hello is not None}


def read_introduction(data: object) -> Hello | None:
    """An introduction as it was stored; None when it is damaged."""
    try:
        hello = decode(data) if isinstance(data, bytes) else None
    except RemoteProtocolError:
        return None
    return hello if isinstance(hello, Hello) else None

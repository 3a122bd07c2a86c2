"""What the journal keeps of a client's books beside its row, in the transactions of its records."""

from __future__ import annotations

import sqlite3
from typing import Final

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS client_books (
    client_id INTEGER PRIMARY KEY, emitted INTEGER NOT NULL, elsewhere INTEGER NOT NULL)
"""


def put_books(connection: sqlite3.Connection, client_id: int, emitted: int, elsewhere: int) -> None:
    """Store how many records a client has emitted, and how many another journal acknowledged."""
    row = client_id, emitted, elsewhere
    connection.execute("INSERT OR REPLACE INTO client_books VALUES (?, ?, ?)", row)


def stored_books(connection: sqlite3.Connection) -> dict[int, tuple[int, int]]:
    """The same of all clients by their ids; most have none."""
    connection.execute(_SCHEMA)  # a journal may be older than it
    rows = connection.execute("SELECT client_id, emitted, elsewhere FROM client_books")
    return {
        int(client_id): (int(emitted), int(elsewhere)) for client_id, emitted, elsewhere in rows
    }

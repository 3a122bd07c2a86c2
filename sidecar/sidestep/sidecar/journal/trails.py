"""What the journal keeps of each client's trail (`resume`), in the transactions of its records."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import Final

import msgpack

from .reader import readable_tag_sets
from .resume import Trail, unpacked

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS trails (client_id INTEGER PRIMARY KEY, trail BLOB NOT NULL);
"""


def put_trail(connection: sqlite3.Connection, client_id: int, trail: Trail) -> None:
    """Store a client's trail."""
    connection.execute("INSERT OR REPLACE INTO trails VALUES (?, ?)", (client_id, trail.packed()))


def stored_trails(connection: sqlite3.Connection) -> dict[int, Trail]:
    """The trails of all clients by their ids, but for those that are damaged."""
    found: dict[int, Trail] = {}
    for client_id, data in connection.execute("SELECT client_id, trail FROM trails"):
        with suppress(TypeError, ValueError, msgpack.UnpackException):
            found[int(client_id)] = unpacked(data)
    return found


def tags_of(connection: sqlite3.Connection, client_id: int, tag_set: int) -> tuple[str, ...]:
    """The tags of a client's tag set; none when it is not defined."""
    rows = connection.execute(
        "SELECT id, tags FROM tag_sets WHERE client_id = ? AND id = ?", (client_id, tag_set)
    )
    return next((tags for _, tags in readable_tag_sets(rows)), ())

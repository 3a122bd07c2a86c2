"""What the journal keeps of the derivers beside their cursor, in the transactions of their output.

A cursor stands before the oldest row of which something is still awaited; `read_row` is how far the
derivers have read. The token names the message that brought all this: what is said next must know
it, so that whatever was lost, doubled or said by a process that is no more, nothing is said twice.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS derive_states (
    run_id INTEGER PRIMARY KEY, token INTEGER NOT NULL, read_row INTEGER NOT NULL,
    state BLOB NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class DeriveState:
    """How far the derivers are with a run.

    Attributes:
        token: of the message that said so; 0 at the beginning.
        read_row: the row up to which everything was read.
        state: what the reductions await.
    """

    token: int = 0
    read_row: int = 0
    state: bytes = b""


def put_derive_state(connection: sqlite3.Connection, run_id: int, found: DeriveState) -> None:
    """Store it."""
    row = run_id, found.token, found.read_row, found.state
    connection.execute("INSERT OR REPLACE INTO derive_states VALUES (?, ?, ?, ?)", row)


def derive_state(connection: sqlite3.Connection, run_id: int) -> DeriveState:
    """What is stored of a run."""
    sql = "SELECT token, read_row, state FROM derive_states WHERE run_id = ?"
    found = connection.execute(sql, (run_id,)).fetchone()
    return DeriveState(int(found[0]), int(found[1]), bytes(found[2])) if found else DeriveState()

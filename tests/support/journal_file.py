"""The journal's file as SQLite itself sees it, whatever became of the daemon."""

from __future__ import annotations

import sqlite3

from .sandbox import Sandbox


def assert_sound(sandbox: Sandbox) -> None:
    """SQLite's own check of every page and index finds nothing wrong, and nothing was put aside."""
    path = sandbox.state / "journal.sqlite"
    connection = sqlite3.connect(path, timeout=30)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    finally:
        connection.close()
    assert list(sandbox.state.glob("journal.sqlite.damaged-*")) == []

"""Where a sink stands: its cursor and its own state, replaced in one atomic rename.

A cursor is a place in one journal. When the journal was lost and another has taken its place, the
place means nothing any more; the sink's own state (its file, and how long that is) still does.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import msgpack


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a sink has come.

    Attributes:
        row: the last journal row that is written.
        total: how many records the run had with that row.
        state: what the sink needs to go on from there.
        journal: the journal's identity.
        dropped: records that had left the journal when the sink came for them; those are never
            written, and `total` counts them too.
    """

    row: int = 0
    total: int = 0
    state: Mapping[str, object] | None = field(default=None)
    journal: int = 0
    dropped: int = 0


def file_name(run: str, log_dir: str, sink: str) -> str:
    """The name of the cursor's file; a run's id in the journal would not outlive the journal."""
    digest = hashlib.sha256(f"{run}\0{log_dir}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"{digest[:24]}.{sink}"


def load(path: str, journal: int) -> Cursor:
    """The cursor in `path`, for `journal`.

    The beginning when there is none, or none that is whole; the beginning with the sink's state
    when it is a place in another journal.
    """
    return find(path, journal) or Cursor(journal=journal)


def find(path: str, journal: int) -> Cursor | None:
    """As `load`, but None when there is no cursor, or none that is whole."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None
    if len(data) < 4 or zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
        return None
    try:
        fields = cast("dict[str, Any]", msgpack.unpackb(data[4:]))
        state = fields["state"]
        row, total, dropped = (_count(fields.get(name, 0)) for name in ("row", "total", "dropped"))
    except (AttributeError, KeyError, TypeError, ValueError, msgpack.UnpackException):
        return None  # whole, but of no version that this one knows
    if state is not None and not isinstance(state, dict):
        return None
    if fields.get("journal") != journal:
        return Cursor(state=state, journal=journal, dropped=dropped)
    return Cursor(row, total, state, journal, dropped)


def _count(number: object) -> int:
    if type(number) is not int or not 0 <= number < 1 << 63:
        raise ValueError(f"no number of rows or records: {number!r:.40}")
    return number


def store(path: str, cursor: Cursor) -> None:
    """Replace the cursor in `path`: a crash leaves the old one or the new one.

    Raises:
        OSError: it cannot be written.
    """
    fields = {
        "row": cursor.row,
        "total": cursor.total,
        "state": cursor.state,
        "journal": cursor.journal,
        "dropped": cursor.dropped,
    }
    data = cast("bytes", msgpack.packb(fields))
    draft = path + ".new"
    with open(draft, "wb") as file:
        file.write(zlib.crc32(data).to_bytes(4, "little") + data)
    os.replace(draft, path)

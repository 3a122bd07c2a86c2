"""Where a sink stands: its cursor and its own state, replaced in one atomic rename."""

from __future__ import annotations

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
    """

    row: int = 0
    total: int = 0
    state: Mapping[str, object] | None = field(default=None)


def load(path: str) -> Cursor:
    """The cursor in `path`; the beginning when there is none, or none that is whole."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return Cursor()
    if len(data) < 4 or zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
        return Cursor()
    fields = cast("dict[str, Any]", msgpack.unpackb(data[4:]))
    return Cursor(int(fields["row"]), int(fields["total"]), fields["state"])


def store(path: str, cursor: Cursor) -> None:
    """Replace the cursor in `path`: a crash leaves the old one or the new one.

    Raises:
        OSError: it cannot be written.
    """
    fields = {"row": cursor.row, "total": cursor.total, "state": cursor.state}
    data = cast("bytes", msgpack.packb(fields))
    draft = path + ".new"
    with open(draft, "wb") as file:
        file.write(zlib.crc32(data).to_bytes(4, "little") + data)
    os.replace(draft, path)

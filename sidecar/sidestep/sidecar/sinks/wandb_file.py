"""Reads a ``.wandb`` file, also while wandb-core writes it, and cuts off its end.

The file is wandb-core's transaction log: seven bytes of header, then records in blocks of 32 KiB,
as LevelDB's log has them. A record is cut into chunks so that none crosses a block::

    crc32 u32, length u16, kind u8 (1 whole, 2 first, 3 middle, 4 last), then a piece of a record

The records are protocol buffers, in the order in which wandb-core took them. The last one may be
there in part: wandb-core writes what it has, in portions of its own choice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from struct import Struct
from typing import Any, Final, cast

NO_RECORDS: Final = 7
"""Length in bytes of a file that has nothing but its header."""

_BLOCK_BYTES: Final = 32 << 10
_CHUNK: Final = Struct("<IHB")
_READ_BYTES: Final = 1 << 20
_WHOLE, _FIRST, _LAST = 1, 2, 4


class RecordReader:
    """Follows a ``.wandb`` file.

    Attributes:
        offset: where the last record that `read` has returned ends, in bytes.
    """

    def __init__(self, path: str) -> None:
        """Start before the first record of the file at `path`."""
        self.offset = NO_RECORDS
        self._path = path
        self._at = NO_RECORDS  # where the next chunk begins
        self._record = b""  # its chunks so far

    def read(self) -> list[tuple[int, bytes]]:
        """The next records, about a mebibyte of them, each with where it ends; [] if none is there.

        Raises:
            OSError: the file is not there, or cannot be read.
        """
        records: list[tuple[int, bytes]] = []
        with open(self._path, "rb") as file:
            start = -1
            while not records and start != self._at:
                start = self._at
                file.seek(start)
                records.extend(self._take(file.read(_READ_BYTES)))
        if records:
            self.offset = records[-1][0]
        return records

    def _take(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the records that end in `data`, which begins at `self._at`."""
        base, end = self._at, self._at + len(data)
        while True:
            left = _BLOCK_BYTES - self._at % _BLOCK_BYTES
            if left < _CHUNK.size:  # the rest of a block, too short for a chunk, is left empty
                if self._at + left > end:
                    return
                self._at += left
                continue
            if self._at + _CHUNK.size > end:
                return
            _crc, length, kind = _CHUNK.unpack_from(data, self._at - base)
            start = self._at + _CHUNK.size
            if kind == 0 or start + length > end:
                return
            self._at = start + length
            piece = data[start - base : self._at - base]
            self._record = piece if kind in (_WHOLE, _FIRST) else self._record + piece
            if kind in (_WHOLE, _LAST):
                yield self._at, self._record


def is_awaited(record: bytes) -> bool:
    """Whether a record is one that the sink has handed over: a row of history, or an alert."""
    found = _parsed(record)
    return bool(found.HasField("history") or found.HasField("alert"))


def rows_before(path: str, end: int) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield W&B's own step and the values of each row of history that ends at or before `end`.

    Raises:
        OSError: the file is not there, or cannot be read.
    """
    reader = RecordReader(path)
    while records := reader.read():
        for offset, data in records:
            if offset > end:
                return
            record = _parsed(data)
            if record.HasField("history"):
                yield int(record.history.step.num), _values(record.history)


def cut(path: str, offset: int) -> None:
    """Take everything after `offset` away from the file at `path`.

    Raises:
        OSError: it is no file that can be written, or a symbolic link.
    """
    file = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(file).st_size > offset:
            os.ftruncate(file, offset)
    finally:
        os.close(file)


def _values(history: Any) -> dict[str, object]:
    values: dict[str, object] = {}
    for item in history.item:
        *outer, name = list(item.nested_key) or [item.key]
        inside = values
        for key in outer:
            inside = cast("dict[str, object]", inside.setdefault(key, {}))
        inside[name] = json.loads(item.value_json)
    return values


def _parsed(record: bytes) -> Any:
    from wandb.proto import wandb_internal_pb2

    return cast("Any", wandb_internal_pb2).Record.FromString(record)

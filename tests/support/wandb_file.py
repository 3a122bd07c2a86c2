"""Reads ``.wandb`` files, whole, with all their checksums: wandb has no reader of its own any more.

Since its service became a Go program, the only Python left in wandb that knows these files is the
protocol buffer of a record. The framing is LevelDB's log with a header of seven bytes and IEEE's
CRC32. This is written apart from the sink's own reader on purpose.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024


def wandb_files(log_dir: str | Path) -> list[Path]:
    """All ``.wandb`` files under ``LOG_DIR/wandb``, in the order of their starts."""
    return sorted(Path(log_dir, "wandb").glob("*run-*/run-*.wandb"))


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """The rows of history in the file at `path`, in their order, with W&B's own ``_step`` etc."""
    return [items(record.history.item) for record in records(path) if record.HasField("history")]


def read_run(path: str | Path) -> Any:
    """The RunRecord in the file at `path`: run_id, project, display_name, tags, config..."""
    return next(record.run for record in records(path) if record.HasField("run"))


def is_complete(path: str | Path) -> bool:
    """Whether the run in the file at `path` was finished."""
    return any(record.HasField("exit") for record in records(path))


def items(of: Any) -> dict[str, Any]:
    """Name and value of each item of a history or a summary, nested as they are."""
    values: dict[str, Any] = {}
    for item in of:
        *outer, name = list(item.nested_key) or [item.key]
        inside = values
        for key in outer:
            inside = inside.setdefault(key, {})
        inside[name] = json.loads(item.value_json)
    return values


def records(path: str | Path) -> Iterator[Any]:
    """Each record in the file at `path`; a torn one at its end is left out."""
    from wandb.proto import wandb_internal_pb2

    for data in payloads(Path(path).read_bytes()):
        yield wandb_internal_pb2.Record.FromString(data)


def payloads(data: bytes) -> Iterator[bytes]:
    """The records in the bytes of a ``.wandb`` file.

    Raises:
        ValueError: it is no such file, or a checksum is wrong.
    """
    magic, version_magic, version = struct.unpack_from("<4sHB", data)
    if (magic, version_magic, version) != (b":W&B", 0xBEE1, 0):
        raise ValueError(f"no .wandb file: it begins with {data[:7]!r}")
    pieces: list[bytes] = []
    at = 7
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, at)
        piece = data[at + 7 : at + 7 + length]
        if len(piece) < length:
            return
        if zlib.crc32(piece, zlib.crc32(bytes([kind]))) != checksum:
            raise ValueError(f"wrong checksum of the chunk at byte {at}")
        pieces = [piece] if kind in (1, 2) else [*pieces, piece]
        if kind in (1, 4):
            yield b"".join(pieces)
        at += 7 + length

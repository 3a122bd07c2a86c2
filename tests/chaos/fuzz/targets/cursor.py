"""Any bytes in a cursor's file are a cursor or none, and a sink opens with whatever it says."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import astuple
from typing import Any

import msgpack
import numpy as np

from sidestep.proto import RunSpec
from sidestep.sidecar.rows.points import ScalarBlock
from sidestep.sidecar.sinks.archive import ArchiveSink
from sidestep.sidecar.sinks.base import SinkContext
from sidestep.sidecar.sinks.tensorboard import TensorBoardSink
from sidestep.sidecar.supervision import cursor_file
from sidestep.sidecar.supervision.cursor_file import Cursor

from .. import scratch
from ..mutator import mutate_bytes, mutate_packed

_JOURNAL = 42
_BLOCK = ScalarBlock(("loss",), np.array([1]), np.array([2]), np.array([[3.0]]))


def check(data: bytes) -> None:
    """The file's bytes, and once more with a checksum that is right."""
    folder = scratch.empty("cursor")
    path = folder / "sink"
    for content in (data, zlib.crc32(data[4:]).to_bytes(4, "little") + data[4:]):
        path.write_bytes(content)
        cursor = cursor_file.load(str(path), _JOURNAL)
        assert type(cursor.row) is int
        assert type(cursor.total) is int
        assert 0 <= cursor.row < 2**63
        assert 0 <= cursor.total < 2**63
        assert cursor.state is None or isinstance(cursor.state, Mapping)
        cursor_file.store(str(path), cursor)
        again = cursor_file.load(str(path), _JOURNAL)
        assert msgpack.packb(astuple(again)) == msgpack.packb(astuple(cursor)), "NaN is not NaN"
        if cursor.state:
            _opened(cursor)


def _opened(cursor: Cursor) -> None:
    for sink in (TensorBoardSink(), ArchiveSink()):
        root = scratch.empty("cursor-logs")
        saved: list[Any] = []
        said: list[str] = []
        context = SinkContext(
            RunSpec("run", str(root)), "run", cursor.state, saved.append, said.append
        )
        try:
            sink.open(context)
            sink.write([_BLOCK])
            msgpack.packb(sink.commit())
        except OSError:
            pass  # a name that is too long, or of a folder: nobody has stored that
        sink.close(finished=True)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another cursor."""
    if rng.random() < 0.2:
        return mutate_bytes(data, rng)
    return data[:4] + mutate_packed(data[4:], rng)


def seeds() -> Iterator[bytes]:
    """Cursors with the states that the sinks store."""
    tensorboard = {
        "file": "events.out.tfevents.1700000000.host.1.0",
        "offset": 0,
        "skipped": 2,
        "folders": {"a/b": {"file": "events.out.tfevents.1700000000.host.1.1", "offset": 0}},
        "series": {"loss": ["a/b", "main", "plain"]},
    }
    archive = {"file": "scalars.000001.host.1", "offset": 0, "tags": 0}
    path = scratch.empty("cursor-seeds") / "sink"
    for state in (None, tensorboard, archive):
        for journal in (_JOURNAL, 7):
            cursor_file.store(str(path), Cursor(5, 9, state, journal))
            yield path.read_bytes()
    yield b""
    yield b"\0" * 3

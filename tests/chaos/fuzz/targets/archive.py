"""Any file in a run's archive gives numbers up to the damage and says so; a sink goes on in it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from sidestep.proto import RunSpec
from sidestep.sidecar.archive.reader import Run, find_run, runs
from sidestep.sidecar.rows.points import ScalarBlock
from sidestep.sidecar.sinks.archive import ArchiveSink
from sidestep.sidecar.sinks.archive_format import (
    BODY_HEAD,
    FILE,
    block_frames,
    file_frame,
    tags_frame,
)
from sidestep.sidecar.sinks.base import SinkContext
from sidestep.sidecar.sinks.event_file import CRC, HEAD, record

from .. import scratch
from ..mutator import mutate_bytes, mutate_packed
from ..packing import join, pieces, pieces_mutator

NAME = "scalars.000001.host.1"
_FRAME, _RAW = 0, 1


def check(data: bytes) -> None:
    """Pieces: bodies that get a right checksum, bytes as they are, and a state for the sink."""
    found = pieces(data)
    states = [piece for operation, piece in found if operation % 4 == 2]
    file = b"".join(
        piece if operation % 4 == _RAW else record(piece)
        for operation, piece in found
        if operation % 4 != 2
    )
    root = scratch.empty("archive")
    folder = root / "scalars" / "run"
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(file)
    _read(root, len(file))
    for state in states[:2]:
        _continued(root, state)


def _read(root: Path, size: int) -> None:
    for found in runs(root):
        assert found.name
    run = find_run(root, "run")
    assert run is not None
    rows = 0
    for block in run.blocks():
        _sound(block)
        rows += len(block.steps)
    assert rows * 16 <= size, "no number comes out of nothing"
    for wanted in run.blocks(["loss", "t*"], first_step=1, last_step=10):
        _sound(wanted)
        assert ((wanted.steps >= 1) & (wanted.steps <= 10)).all()
    for damage in run.damage:
        assert damage.lost_bytes >= 0
        assert str(damage)


def _sound(block: ScalarBlock) -> None:
    assert block.values.shape == (len(block.steps), len(block.tags))
    assert block.steps.shape == block.times_ns.shape
    assert len(block.steps) > 0


def _continued(root: Path, packed: bytes) -> None:
    """A sink that is opened with any state writes what comes next, and it can be read."""
    try:
        state = msgpack.unpackb(packed)
    except (ValueError, msgpack.UnpackException):
        return
    if not isinstance(state, dict):
        return
    said: list[str] = []
    saved: list[Any] = []
    sink = ArchiveSink()
    context = SinkContext(RunSpec("run", str(root)), "run", state, saved.append, said.append)
    try:
        sink.open(context)
    except OSError:
        return  # a name that is too long, or of a folder: nobody has stored that
    block = ScalarBlock(("new",), np.array([7]), np.array([8]), np.array([[0.125]]))
    sink.write([block])
    msgpack.packb(sink.commit())
    sink.close(finished=True)
    last = [b.values[-1, 0] for b in Run("run", root).blocks(["new"]) if b.steps[-1] == 7]
    assert 0.125 in last or _before(state)


def _before(state: dict[str, Any]) -> bool:
    """Whether the state says that the file goes on behind damage: then a reader stops before."""
    return state.get("file") == NAME and bool(state.get("offset"))


def _change(data: bytes, rng: random.Random) -> bytes:
    """A body: its head, or the MessagePack in it."""
    if rng.random() < 0.5 or len(data) < BODY_HEAD.size:
        return mutate_packed(data, rng) if rng.random() < 0.5 else mutate_bytes(data, rng)
    head = BODY_HEAD.size + (8 if data[0] == 2 else 0)
    return data[:head] + mutate_packed(data[head:], rng)


mutate = pieces_mutator(_change)


@cache
def _bodies() -> list[bytes]:
    """The bodies of a file as the sink writes it."""
    rows = np.arange(5)
    block = ScalarBlock(("loss",), rows, rows * 2, rows[:, None] / 8)
    wide = ScalarBlock(("a", "b", "t"), rows, rows, np.ones((5, 3)))
    frames = [file_frame("run"), tags_frame(0, ("loss",), 0), b"".join(block_frames(0, block))]
    frames += [tags_frame(1, ("a", "b", "t"), 48), b"".join(block_frames(1, wide))]
    return [frame[HEAD.size : -CRC.size] for frame in frames]


def seeds() -> Iterator[bytes]:
    """A whole file, a torn one, bodies that are too short, and states to go on with."""
    bodies = _bodies()
    good = [(_FRAME, body) for body in bodies]
    file = b"".join(map(record, bodies))
    yield join(good)
    yield join([*good, *good[1:3]])
    yield join([(_RAW, file[:-9])])
    yield join([good[0], (_FRAME, b"short"), *good[1:]])
    yield join([(_FRAME, BODY_HEAD.pack(FILE, 9, 0, 0))])
    after = len(record(bodies[0]))
    second = after + len(record(bodies[1])) + len(record(bodies[2]))
    for offset, tags in ((len(file), second), (second, after), (0, 0), (after, 0), (10**9, 5)):
        state = {"file": NAME, "offset": offset, "tags": tags}
        yield join([*good, (2, msgpack.packb(state))])

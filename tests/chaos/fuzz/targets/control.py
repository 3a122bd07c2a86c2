"""Each question that the control socket is asked gets one answer in JSON, and little is kept."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

from sidestep.proto import RunSpec
from sidestep.sidecar.control.requests import Control
from sidestep.sidecar.ingest.roster import RunEntry, Snapshot
from sidestep.sidecar.journal.reader import JournalReader
from sidestep.sidecar.supervision.supervisor import Supervisor

from .. import scratch
from ..mutator import changed, mutate_bytes
from . import rows

_MAX_ANSWER_BYTES = 1 << 20
_MAX_KEPT = 4096


class Hall:
    """A door with one who asks, and the answers that were sent through it."""

    def __init__(self) -> None:
        self.question: list[bytes] = []
        self.answers: list[list[bytes]] = []

    def receive(self, *_: object) -> list[tuple[bytes, list[bytes]]]:
        """The one question."""
        return [(b"identity", self.question)]

    def send(self, _identity: bytes, parts: list[bytes]) -> bool:
        """An answer to it."""
        self.answers.append(parts)
        return True


@cache
def control() -> tuple[Control, Hall]:
    """A control socket over a journal of two rows, without sinks' processes."""
    made = rows.bench()
    hall = Hall()
    run = RunEntry(made.run_id, RunSpec("run", "/nowhere"))
    snapshot = Snapshot(made.good, {}, {made.run_id: run})
    ingest = SimpleNamespace(snapshot=snapshot, scan=lambda: 1, daemon_id=5)
    folder = str(scratch.empty("cursors"))
    supervisor = Supervisor(made.path, 1, folder, 0o077, lambda _: None, beginning=lambda _: (0, 0))
    return (
        Control(
            cast("Any", hall),
            JournalReader(made.path),
            cast("Any", ingest),
            supervisor,
            lambda: {"pid": 1},
            lambda: ([], {}),
            lambda now: None,
        ),
        hall,
    )


def check(data: bytes) -> None:
    """A question's bytes, in one frame or, divided at zeros, in several."""
    made, hall = control()
    for frames in ([b"", data], data.split(b"\0")):
        hall.question, hall.answers = list(frames), []
        made.answer()
        assert len(hall.answers) == 1
        answer = json.loads(hall.answers[0][-1])
        assert isinstance(answer, dict)
        assert len(hall.answers[0][-1]) <= _MAX_ANSWER_BYTES
    made.advance()
    assert len(made._drains) <= 1000
    newest = next(reversed(made._drains.values()), None)
    if newest is not None and newest.wanted is not None:
        kept = newest.wanted.__closure__ or ()
        assert sum(len(repr(cell.cell_contents)) for cell in kept) <= _MAX_KEPT


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another question: mostly JSON still."""
    if rng.random() < 0.7:
        try:
            return json.dumps(changed(json.loads(data), rng), default=repr).encode()
        except (ValueError, TypeError, RecursionError):
            pass
    return mutate_bytes(data, rng)


def seeds() -> Iterator[bytes]:
    """All that the commands ask."""
    for question in (
        {"op": "hello"},
        {"op": "status"},
        {"op": "drain"},
        {"op": "drain", "token": 5},
        {"op": "drain", "sink": "tensorboard", "run": "run", "log_dir": "/nowhere"},
        {"op": "history", "run": "run", "tags": ["loss", "t*"], "points": 10, "after": None},
        {"op": "history", "run": None, "tags": [], "points": 10, "after": 0},
        {"op": "stop", "now": True},
        {"op": "?"},
        [],
    ):
        yield json.dumps(question).encode()
    for huge in ("x" * 5000, ["x"] * 5000):
        yield json.dumps({"op": "drain", "run": huge}).encode()
        yield json.dumps({"op": "history", "points": 5, "tags": huge}).encode()
    yield b"[" * 2000
    yield b'{"op": "history", "points": 1e999}'

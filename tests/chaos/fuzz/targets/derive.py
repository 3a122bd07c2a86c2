"""What is derived of a value can be journalled, or the value is refused; no round fails."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgpack
import numpy as np

from sidestep.proto import RunSpec, Value
from sidestep.sidecar.alarms import Rules
from sidestep.sidecar.derive.deriving import Deriving
from sidestep.sidecar.derive.worker import Worker, watchers
from sidestep.sidecar.ingest.own_points import OwnPoints
from sidestep.sidecar.ingest.roster import DaemonPoints, RunEntry
from sidestep.sidecar.journal.derive_state import DeriveState
from sidestep.sidecar.journal.reader import JournalReader, Row
from sidestep.sidecar.journal.writer import ClientRow, Journal
from tests.support.moments import float32, moments_value
from tests.unit.sidecar.test_derive_parameters import value_of as parameters_value

from .. import scratch
from ..mutator import mutate_packed
from . import values

_MAX_MESSAGE_BYTES = 64 << 20


class Bench:
    """The derivers' worker, the daemon's end of it, and the journal behind both."""

    def __init__(self) -> None:
        path = str(scratch.empty("derive") / "journal.sqlite")
        self.journal = Journal(path)
        self.journal.begin()
        self.run = RunEntry(self.journal.put_run(RunSpec("run", "/logs")), RunSpec("run", "/logs"))
        client = ClientRow(0, b"u" * 16, self.run.id, 0, 0, 1, "live", 0, 0, 0, 0, None)
        self.client_id = self.journal.put_client(client)
        self.journal.commit()
        self.said: list[dict[str, Any]] = []
        self.points: list[DaemonPoints] = []
        self.deriving = Deriving(path, Rules(), self.points.append, lambda _: None)
        watching = watchers(Rules().plain())
        self.worker = Worker(self, JournalReader(path), watching)  # type: ignore[arg-type]
        self.begun = self.worker._begin(self.run.id)
        self.row = 0

    def send(self, message: dict[str, Any]) -> None:
        """As a channel does it."""
        data = msgpack.packb(message)
        assert len(data) <= _MAX_MESSAGE_BYTES
        self.said.append(msgpack.unpackb(data))

    def derive(self, data: bytes) -> None:
        """Everything from a row of the journal to the round of ingest that stores what it gives."""
        self.said.clear()
        self.points.clear()
        self.row += 1
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            row = Row(self.row, self.client_id, 1, 1, data)
            self.worker._row(self.begun, row, is_last=True)
        for message in self.said:
            self.deriving._take(message)
        assert len(self.points) == 1, "a row is done, whatever it was"
        own = OwnPoints(self.journal)
        self.journal.begin()
        try:
            self.run.derived = DeriveState(self.points[0].derived_after)
            assert own.append(self.run, self.points[0])
        finally:
            self.journal.rollback()


@cache
def bench() -> Bench:
    """One for the process."""
    return Bench()


def check(data: bytes) -> None:
    """A value as in `values`, of any kind."""
    value = values.value_of(data)
    if value is not None:
        from sidestep.proto.records import encode_value

        bench().derive(b"".join(encode_value(value)[1]))


mutate = mutate_packed


def seeds() -> Iterator[bytes]:
    """Moments of every form, and parameters with and without updates, dense and sparse."""
    rng = np.random.default_rng(0)
    flat, cube = rng.normal(size=(8, 4)), rng.normal(size=(6, 3, 4))
    for made in (
        moments_value(flat),
        moments_value(flat, due=False),
        moments_value(cube, paired=cube + 0.1, loss=0.5),
        moments_value(cube, shares=False, extras={"more": 1.0, "other": 2.0}),
        moments_value(flat, extras={"lidar": 4.0}, scatter=(2, np.eye(3), np.eye(3) / 2)),
        moments_value(flat * np.nan),
        moments_value(np.zeros((3, 4))),
    ):
        yield values.packed(made)
    layers = {
        "a": rng.normal(size=10).astype(np.float32),
        "b": rng.normal(size=6).astype(np.float32),
    }
    yield values.packed(parameters_value(layers, sparse=True))
    yield values.packed(parameters_value(layers, [0.1, 0.2], sparse=True))
    yield values.packed(Value("moments", "x", 1, 1, {"v": 2}, float32([1.0])))

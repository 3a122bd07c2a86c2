"""The daemon's end of the derivers' process: whole rows, told once, nothing of one that died."""

from __future__ import annotations

from typing import Any, cast

from sidestep.proto import RunSpec, Value
from sidestep.proto.records import encode_value
from sidestep.sidecar.alarms import Rules
from sidestep.sidecar.derive.deriving import Deriving, underived
from sidestep.sidecar.ingest.roster import DaemonPoints, RunEntry, Snapshot
from sidestep.sidecar.journal.derive_state import DeriveState


class FakeChild:
    """A process that says what it is told to say."""

    def __init__(self) -> None:
        self.running = False
        self.last_exit = 1
        self.told: list[dict[str, Any]] = []
        self.says: list[list[dict[str, Any]] | None] = []

    def ensure(self) -> bool:
        started, self.running = not self.running, True
        return started

    def tell(self, message: dict[str, Any]) -> None:
        self.told.append(message)

    def hear(self) -> list[dict[str, Any]] | None:
        said = self.says.pop(0)
        self.running = said is not None
        return said

    def kill(self) -> None:
        self.running = False


class Host:
    """`Deriving` with a process that is none."""

    def __init__(self) -> None:
        self.submitted: list[DaemonPoints] = []
        self.deriving = Deriving("j", Rules(), self.submitted.append, lambda text: None)
        self.child = FakeChild()
        self.deriving._child = cast("Any", self.child)

    def hear(self, *messages: dict[str, Any] | None) -> None:
        self.child.says.append(None if None in messages else list(cast("Any", messages)))
        self.deriving.hear()


def part(**last: Any) -> dict[str, Any]:
    image = b"".join(encode_value(Value("image", "i", 0, 1))[1])
    scalars = [(0, 1, {"a": 1.0})]
    return {"run_id": 1, "scalars": scalars, "values": [image], "alarm_states": {}, **last}


def done(row: int, after: int, refused: int = 0) -> dict[str, Any]:
    """What the last part of a row says; the tokens are the rows' numbers."""
    return {
        "row": row,
        "read": row,
        "after": after,
        "token": row,
        "state": b"s",
        "reductions": {"late": 1},
        "refused": refused,
    }


DONE = done(7, 3, 2)


def test_parts_of_a_row_are_journalled_together() -> None:
    host = Host()
    host.hear(part(), part())
    assert host.submitted == []
    host.hear(part(**DONE), part(**done(9, 7)))
    first, second = host.submitted
    assert (first.run_id, first.derived_row, first.derived_after) == (1, 7, 3)
    assert (first.derived, first.reductions) == (DeriveState(7, 7, b"s"), {"late": 1})
    assert len(first.scalars) == len(first.values) == 3
    assert len(second.scalars) == len(second.values) == 1
    assert host.deriving.refused == 2


def test_parts_of_a_process_that_died_are_forgotten() -> None:
    host = Host()
    host.hear(part())
    host.hear(None)
    host.hear(part(**DONE))
    (only,) = host.submitted
    assert len(only.scalars) == 1


def test_a_run_is_told_of_once_until_it_has_answered() -> None:
    host = Host()
    spec = RunSpec("r", "/logs")

    def tick(**rows: int) -> list[int]:
        host.child.told.clear()
        host.deriving.tick(Snapshot(runs={1: RunEntry(1, spec, **rows)}))
        return [message["after"] for message in host.child.told]

    assert tick() == tick(to_derive_row=0, derived_row=0) == []
    assert not host.child.running  # nothing to derive: no process
    assert tick(to_derive_row=4, derived_row=2) == [2]
    assert host.child.running
    assert tick(to_derive_row=9, derived_row=2) == []
    assert tick(to_derive_row=9, derived_row=3) == []
    assert tick(to_derive_row=9, derived_row=4) == [4]
    assert tick(to_derive_row=9, derived_row=9) == []
    host.hear(None)
    assert tick(to_derive_row=9, derived_row=8) == [8]  # a new process knows nothing
    # What is awaited holds the cursor back: the process looks after that by itself.
    held = RunEntry(1, spec, to_derive_row=12, derived_row=9, derived=DeriveState(1, 12))
    host.child.told.clear()
    host.deriving.tick(Snapshot(runs={1: held}))
    host.deriving.tick(Snapshot(runs={1: held}))
    assert [message["after"] for message in host.child.told] == [9]
    assert underived(RunEntry(1, spec, to_derive_row=2, derived_row=1))
    assert not underived(RunEntry(1, spec, to_derive_row=2))


def test_a_process_whose_word_does_not_fit_the_journal_begins_again() -> None:
    """One before it had said something that was journalled after this one had looked."""
    host = Host()
    run = RunEntry(1, RunSpec("r", "/logs"), to_derive_row=4, derived_row=2)
    runs = {1: run}
    host.deriving.tick(Snapshot(runs=runs))
    host.hear(part(**DONE))
    (said,) = host.submitted
    host.deriving.tick(Snapshot(runs=runs, refused_deriver=said.deriver + 5))
    assert len(host.child.told) == 1, "that was another one"
    host.deriving.tick(Snapshot(runs=runs, refused_deriver=said.deriver))
    assert len(host.child.told) == 2
    host.deriving.tick(Snapshot(runs=runs, refused_deriver=said.deriver))
    assert len(host.child.told) == 2, "once"

"""The cap on what waits for W&B alone: oldest first, and exact however it is interrupted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidestep.proto import RunSpec
from sidestep.sidecar.backlog_cap import BacklogCap
from sidestep.sidecar.ingest.roster import RunEntry, Snapshot
from sidestep.sidecar.journal.reader import JournalReader
from sidestep.sidecar.journal.writer import ClientRow, Journal
from sidestep.sidecar.supervision import cursor_file
from sidestep.sidecar.supervision.cursor_file import Cursor
from sidestep.sidecar.supervision.supervisor import SinkHandle, Supervisor
from sidestep.sidecar.supervision.wanted import Wanted
from sidestep.sidecar.trimming import Trimming

CAP_BYTES = 10_000


class World:
    """A journal, two runs, and daemons that come and go; the sinks' workers are played here.

    A W&B worker reads a few rows, may die before it has stored its cursor, and counts what is
    missing before them, as `worker.Worker` does.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = str(folder / "journal.sqlite")
        self.written: dict[int, int] = {}
        self.logged: list[str] = []
        self.journal = Journal(self.path, history_bytes=0)
        self.journal.begin()
        self.specs = {}
        for name in ("a", "b"):
            spec = RunSpec(name, "/logs", wandb={})
            self.specs[self.journal.put_run(spec)] = spec
        for run_id in self.specs:
            row = ClientRow(0, bytes([run_id]) * 16, run_id, 0, 0, 1, "live", 0, 0, 0, 0, None)
            self.journal.put_client(row)
        self.journal.commit()
        self.start()

    def start(self) -> None:
        """A daemon comes."""
        self.reader = JournalReader(self.path)
        self.supervisor = Supervisor(
            self.path,
            self.reader.identity(),
            str(self.folder),
            0o077,
            self.logged.append,
            self.reader.beginning,
            wanted=Wanted(archive=False),
        )
        self.supervisor._start = lambda *_: None  # type: ignore[method-assign]  # no processes
        cap = BacklogCap(self.reader, CAP_BYTES, self.logged.append)
        self.trimming = Trimming(self.supervisor, cap, self.trim)
        self.tick()

    def kill(self) -> None:
        """The daemon goes, and takes nothing with it that is not on the disk."""
        self.reader.close()

    def trim(self, passed: object) -> None:
        self.journal.begin()
        self.journal.trim(passed)  # type: ignore[arg-type]
        self.journal.commit()

    def append(self, run_id: int, records: int, nbytes: int) -> None:
        self.journal.begin()
        self.journal.append(run_id, run_id, records, bytes(nbytes))
        self.journal._age_all()  # type: ignore[attr-defined]
        self.journal.commit()

    def tick(self) -> None:
        runs = {run_id: RunEntry(run_id, spec) for run_id, spec in self.specs.items()}
        snapshot = Snapshot(
            self.journal.last_row,
            dict(self.journal.totals),
            runs,
            old_row=self.journal.last_row,
        )
        self.supervisor.tick(snapshot, set())
        self.trimming.tick(snapshot)

    def sink(self, run_id: int, name: str = "wandb") -> SinkHandle:
        return next(sink for sink in self.supervisor.sinks(run_id) if sink.name == name)

    def work(self, run_id: int, name: str, rows: int, dies: bool = False) -> None:
        """What a worker does with the next rows."""
        sink = self.sink(run_id, name)
        cursor = cursor_file.load(sink.cursor_path, self.reader.identity())
        found = self.reader.rows(cursor.row, run_id)[:rows]
        if not found or dies:
            return
        gone = found[0].total - found[0].records - cursor.total
        assert gone >= 0
        assert name == "wandb" or gone == 0, "only W&B loses anything"
        if name == "wandb":
            self.written[run_id] = self.written.get(run_id, 0) + sum(r.records for r in found)
        moved = Cursor(
            found[-1].id, found[-1].total, {}, self.reader.identity(), cursor.dropped + gone
        )
        cursor_file.store(sink.cursor_path, moved)
        sink.cursor = moved


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    def age_all(journal: Journal) -> None:
        journal._floor = journal.last_row

    monkeypatch.setattr(Journal, "_age_all", age_all, raising=False)
    made = World(tmp_path)
    yield made
    made.kill()
    made.journal.close()


@pytest.mark.parametrize("seed", range(20))
def test_written_and_dropped_are_all_whatever_happens(world: World, seed: int) -> None:
    choose = random.Random(seed)
    steps = []
    for _ in range(300):
        run_id = choose.choice(list(world.specs))
        step = choose.choices(
            ["append", "tensorboard", "wandb", "dies", "tick", "restart"], [8, 4, 1, 1, 6, 0.3]
        )[0]
        steps.append(step)
        match step:
            case "append":
                world.append(run_id, choose.randint(1, 9), choose.randint(10, 2_000))
            case "tensorboard":
                world.work(run_id, "tensorboard", choose.randint(1, 20))
            case "wandb" | "dies":
                world.work(run_id, "wandb", choose.randint(1, 3), dies=step == "dies")
            case "tick":
                world.tick()
            case _:
                seen = {run: world.sink(run).dropped for run in world.specs}
                world.kill()
                world.start()
                assert all(world.sink(run).dropped >= seen[run] for run in world.specs)
    for run_id in world.specs:
        world.append(run_id, 1, 10)
        world.work(run_id, "tensorboard", 10_000)
    world.tick()
    for run_id in world.specs:
        world.work(run_id, "wandb", 10_000)
        total = world.journal.totals[run_id]
        assert world.written[run_id] + world.sink(run_id).dropped == total
        assert world.supervisor.lag(world.sink(run_id), Snapshot(totals={run_id: total})) == 0
    assert any(world.sink(run_id).dropped for run_id in world.specs), "nothing was dropped"


def test_the_cap_is_kept_and_not_more_than_needed_is_dropped(world: World) -> None:
    a, b = world.specs
    for _ in range(40):
        for run_id in (a, b):
            world.append(run_id, 1, 500)
    world.tick()
    assert [world.sink(run).dropped for run in (a, b)] == [0, 0], "others need them too"
    for run_id in (a, b):
        world.work(run_id, "tensorboard", 100)
    world.tick()
    world.tick()  # sees what the first one has let go of
    assert [world.sink(run).dropped for run in (a, b)] == [30, 30], "the oldest of all runs"
    assert [world.reader.beginning(run)[1] for run in (a, b)] == [30, 30]
    assert sum("wandb_backlog_mb" in line for line in world.logged) == 2
    world.work(a, "wandb", 1)
    assert world.sink(a).cursor.dropped == 30


def test_a_sink_that_is_wanted_later_has_dropped_nothing(world: World) -> None:
    a, _ = world.specs
    sink = world.sink(a)
    for _ in range(30):
        world.append(a, 1, 500)
        world.work(a, "tensorboard", 10)
        world.work(a, "wandb", 10)
    world.tick()
    assert world.reader.beginning(a)[1] > 20
    Path(sink.cursor_path).unlink()  # as if it had never been wanted before
    world.kill()
    world.start()
    assert world.sink(a).dropped == 0
    world.work(a, "wandb", 10)
    assert world.sink(a).dropped == 0


def test_a_run_that_rests_is_not_asked_about_for_ever(world: World) -> None:
    """Ingest looks at each run that it is asked about, and a journal may know thousands."""
    asked: list[dict[int, int]] = []
    world.trimming._trim = lambda passed: asked.append(dict(passed))  # type: ignore[assignment]
    for run_id in (1, 2):
        world.append(run_id, 1, 10)
    for run_id in (1, 2):
        for name in ("tensorboard", "wandb"):
            world.work(run_id, name, 9)
    world.tick()
    for _ in range(3):
        world.append(1, 1, 10)
        for name in ("tensorboard", "wandb"):
            world.work(1, name, 9)
        world.tick()
    assert asked[0].keys() == {1, 2}
    assert [passed.keys() for passed in asked[1:]] == [{1}] * 3


def test_a_journal_that_cannot_be_measured_ends_nobody(world: World) -> None:
    world.append(1, 1, 10)
    world.work(1, "tensorboard", 9)
    world.reader.close()  # sqlite3.ProgrammingError from now on
    world.trimming._log = world.logged.append
    for _ in range(3):
        world.tick()
    assert sum("cannot be measured" in line for line in world.logged) == 1

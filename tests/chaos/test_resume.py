"""A run goes on from a checkpoint: curves do not double back, and nothing that was emitted goes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from sidestep.client.tensorboard import SummaryWriter
from tests.support.curves import curve, restarts
from tests.support.fixtures import Connect, Train
from tests.support.oracle import Point, assert_booked, assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox, parse_lines
from tests.support.wandb_file import read_history, wandb_files

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

pytest.importorskip("wandb")

STEPS = (0, 0, 7, -3, 5, 5, 2**40, -(2**62), 2**63 - 1, -(2**63), 1)


def folder(sandbox: Sandbox, run: str) -> Path:
    return sandbox.logs / "tensorboard" / run


def exported(sandbox: Sandbox, run: str) -> Counter[Point]:
    """What `export` has of a run, less the daemon's own."""
    done = sandbox.cli("export", run, "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    rows = ((line["tag"], line["step"], line["value"]) for line in parse_lines(done.stdout))
    return points(
        (tag, step, float(value))
        for tag, step, value in rows
        if not tag.startswith(("system/", "sidestep/"))
    )


def test_killed_and_resumed_below(sandbox: Sandbox, train: Train) -> None:
    """Three attempts, the first two killed, each begins below where the one before it was."""
    sandbox.serve()
    wandb = {"project": "sidestep-test", "mode": "offline"}
    plan = {"run": "vit", "tags": 2, "interval_s": 0.0005, "connect": {"wandb": wandb}}
    choose = random.Random(3)
    first = train(**plan, emits=3000, seed=1, end="wait")
    first.await_begun(choose.randrange(500, 700))
    first.kill()
    second = train(**plan, emits=3000, seed=2, first_step=400, end="wait")
    second.await_begun(choose.randrange(500, 700))
    second.kill()
    third = train(**plan, emits=300, seed=3, first_step=800)
    assert third.finished()["finish"]
    status = sandbox.await_run("vit", state="finished", attempts=3)
    sandbox.drain()

    emitted: Counter[Point] = Counter()
    written = 0
    for run in (first, second, third):
        found = read_scalars(sandbox.event_files("vit"))
        whole = run.emitted(run.begun) - found == Counter()
        emitted += run.emitted(run.begun if whole else run.returned)
        written += run.begun if whole else run.returned
    assert_exactly(read_scalars(sandbox.event_files("vit")), emitted)
    assert_exactly(exported(sandbox, "vit"), emitted)
    assert_booked(status, written)
    (file,) = wandb_files(sandbox.logs)
    rows = [row for row in read_history(file) if "train/v0" in row]
    assert len(rows) == written, "W&B has every step of each attempt"

    assert restarts(sandbox.event_files("vit")) == [400, 800]
    seen = curve(folder(sandbox, "vit"), "train/v0")
    assert [step for step, _ in seen] == list(range(1100)), "the curve doubles back"
    parts = [(first, 0, 400), (second, 400, 800), (third, 800, 1100)]
    assert points(("train/v0", step, value) for step, value in seen) == points(
        row
        for run, a, b in parts
        for row in run.plan.rows(1000)
        if row[0] == "train/v0" and a <= row[1] < b
    )


def test_resumed_while_the_daemon_is_killed(sandbox: Sandbox, connect: Connect) -> None:
    check_kills(sandbox, connect, seed=1, attempts=5)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2, 8))
def test_resumed_while_the_daemon_is_killed_with_more_seeds(
    sandbox: Sandbox, connect: Connect, seed: int
) -> None:
    check_kills(sandbox, connect, seed=seed, attempts=20)


def check_kills(sandbox: Sandbox, connect: Connect, *, seed: int, attempts: int) -> None:
    """Each attempt begins below where the one before was; the daemon is killed meanwhile."""
    choose = random.Random(seed)
    daemon = sandbox.serve()
    emitted: list[tuple[str, int, float]] = []
    starts: list[int] = []
    shown: list[int] = []
    for attempt in range(attempts):
        start = choose.randrange(shown[-1]) if shown else 0
        steps = range(start, start + choose.randrange(20, 200))
        dies = choose.choice([None, 0, 1, choose.randrange(len(steps))]) if attempt else None
        made = connect("crash")
        for number, step in enumerate(steps):
            if number == dies:
                made.flush(choose.choice([0.0, 0.002, 0.02]))  # the moment is what is drawn
                daemon.kill()
            made.emit({"train/loss": step + attempt / 100}, step=step)
            emitted.append(("train/loss", step, step + attempt / 100))
        if dies is not None:
            daemon = sandbox.serve()
        assert made.finish(30)
        print(f"attempt {attempt} from step {start}; killed before emit {dies} of {len(steps)}")
        if shown:
            starts.append(start)
        shown = [step for step in shown if step < start] + list(steps)
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("crash")), points(emitted))
    assert restarts(sandbox.event_files("crash")) == starts, "a purge is lost, or there twice"
    assert [step for step, _ in curve(folder(sandbox, "crash"), "train/loss")] == shown


def test_what_hides_nothing(sandbox: Sandbox, connect: Connect) -> None:
    """An evaluation at a lower step, steps in any order, and torch's own folders."""
    sandbox.serve()
    rows: list[tuple[str, int, float]] = []

    def emit(tags: tuple[str, ...], steps: Iterable[int]) -> None:
        made = connect("run")
        for step in steps:
            made.emit(dict.fromkeys(tags, step / 7), step=step)
            rows.extend((tag, step, step / 7) for tag in tags)
        assert made.finish(30)

    emit(("train/loss", "train/lr"), range(100))
    emit(("eval/loss",), (30, 20, 60))
    emit(("eval/loss",), (10, 20))  # again, with the same tag
    emit(("train/loss", "train/lr"), (100, *STEPS))  # it goes on, and jumps as it likes
    for _ in range(2):
        with SummaryWriter(str(sandbox.logs / "torch")) as writer:
            for step in range(10):
                writer.add_scalar("loss", step, step)
    sandbox.drain()

    assert_exactly(read_scalars(sandbox.event_files("run")), points(rows))
    assert_exactly(exported(sandbox, "run"), points(rows))
    assert restarts(sandbox.event_files("run")) == []
    steps = [step for step, _ in curve(folder(sandbox, "run"), "train/loss")]
    assert steps == [*range(100), 100, *STEPS], "kept, in the order of their emission"
    torchs = sorted((sandbox.logs / "torch").glob("events.*"))
    assert read_scalars(torchs).total() == 20
    assert restarts(torchs) == []

"""`tail --json`: every point once, to float64, whatever comes first: tail, daemon or run."""

from __future__ import annotations

import json
import math
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sidestep import client
from tests.support.fixtures import Connect, Train
from tests.support.sandbox import Sandbox, parse_lines
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)


NOT_OURS = ("system/", "sidestep/", "canary")


class Tail:
    """A running `tail --json`, and what it has said."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.points: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._news: queue.Queue[None] = queue.Queue()
        self._threads = [
            threading.Thread(target=self._read, args=(stream, take), daemon=True)
            for stream, take in (
                (process.stdout, lambda line: self.points.append(json.loads(line))),
                (process.stderr, self.notes.append),
            )
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, stream: Any, take: Callable[[str], None]) -> None:
        for line in stream:
            take(line)

    def of(self, *tags: str) -> list[tuple[str, int, float]]:
        """Tag, step and value of the points so far; without the daemon's own, or of these tags."""
        return [
            (p["tag"], p["step"], p["value"])
            for p in list(self.points)
            if (p["tag"] in tags if tags else not p["tag"].startswith(NOT_OURS))
        ]

    def await_listening(self, made: client.Client) -> None:
        """Emit until something of it is seen: from here on nothing may be missed."""

        def seen() -> bool:
            made.emit({"canary": 1.0}, step=0)
            return bool(self.of("canary"))

        wait_until(seen, 30, lambda: f"no point; notes: {self.notes}", 0.1)

    def await_points(self, many: int, timeout_s: float = 30.0) -> list[tuple[str, int, float]]:
        """Wait until there are so many points of the trainer's."""
        wait_until(
            lambda: len(self.of()) >= many,
            timeout_s,
            lambda: f"{len(self.of())} of {many} points; notes: {self.notes}",
        )
        return self.of()

    def stop(self) -> int:
        """As Ctrl-C does; the exit code."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(20)
        for thread in self._threads:
            thread.join(20)
        return code


Start = Callable[..., Tail]


@pytest.fixture
def tail(sandbox: Sandbox) -> Iterator[Start]:
    """Starts `tail --json` in the sandbox."""
    started: list[Tail] = []

    def start(*arguments: str) -> Tail:
        started.append(Tail(sandbox.popen("tail", "--json", *arguments)))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.stop()
        for stream in (each.process.stdout, each.process.stderr):
            assert stream
            stream.close()


VALUES = [0.1, 1 / 3, 5e-324, 1e308, -0.0, 2.0**53 + 2, math.nan, math.inf, -math.inf]


def same(a: float, b: float) -> bool:
    """The same bits, NaN for NaN."""
    return (math.isnan(a) and math.isnan(b)) or (
        a == b and math.copysign(1, a) == math.copysign(1, b)
    )


def test_before_there_is_a_daemon_or_a_run(sandbox: Sandbox, connect: Connect, tail: Start) -> None:
    watching = tail("later")
    wait_until(lambda: watching.notes, 20, "it does not say that it waits")
    sandbox.serve()
    made = connect("later")
    for step, value in enumerate(VALUES):
        made.emit({"a": value, "b": step}, step=step, wall_time=1_700_000_000.5 + step)
    assert made.flush(30)
    watching.await_points(2 * len(VALUES))
    assert made.finish(30)
    assert watching.stop() == 0

    points = [p for p in watching.points if not p["tag"].startswith(NOT_OURS)]
    assert all(set(p) == {"run", "tag", "step", "wall_time", "value"} for p in points)
    assert {p["run"] for p in points} == {"later"}
    found = [p for p in points if p["tag"] == "a"]
    assert [p["step"] for p in found] == list(range(len(VALUES)))
    assert all(same(p["value"], v) for p, v in zip(found, VALUES, strict=True)), found
    for step, p in enumerate(found):
        assert p["wall_time"] == pytest.approx(1_700_000_000.5 + step, abs=1e-6)


def test_every_point_of_a_fast_run_in_order(
    sandbox: Sandbox, connect: Connect, train: Train, tail: Start
) -> None:
    sandbox.serve()
    watching = tail("fast")
    watching.await_listening(connect("fast"))
    run = train(run="fast", emits=4000, tags=5, interval_s=0.0003)
    watching.await_points(20_000, 60)
    assert run.finished()["finish"]
    assert watching.stop() == 0
    assert watching.of() == list(run.plan.rows(4000))


def test_survives_the_daemons_restart(
    sandbox: Sandbox, connect: Connect, train: Train, tail: Start
) -> None:
    """Killed twice: every point once, among them those that nobody published."""
    daemon = sandbox.serve()
    watching = tail("restarted")
    watching.await_listening(connect("restarted"))
    run = train(
        run="restarted",
        emits=3000,
        tags=4,
        interval_s=0.001,
        limit=500,
        connect={"autostart": False},
    )
    for limit in (1500, 0):
        watching.await_points(4 * (run.record["limit"] - 100))
        run.await_begun(run.record["limit"])
        daemon.kill()
        run.record["limit"] = limit
        daemon = sandbox.serve()
    stats = run.finished()
    assert stats["finish"]
    watching.await_points(12_000, 60)
    assert watching.stop() == 0
    assert sorted(watching.of()) == sorted(run.plan.rows(3000))


def test_only_the_tags_that_are_wanted(sandbox: Sandbox, connect: Connect, tail: Start) -> None:
    sandbox.serve()
    watching = tail("wanted", "--tags", "train/*", "-t", "val/loss", "-t", "canary")
    made = connect("wanted")
    watching.await_listening(made)
    for step in range(20):
        made.emit({"train/a": 1.0, "val/loss": 2.0, "val/other": 3.0}, step=step)
    assert made.flush(30)
    watching.await_points(40)
    made.emit({"train/end": 0.0}, step=20)
    watching.await_points(41)
    assert watching.stop() == 0
    assert {p["tag"] for p in watching.points} == {"train/a", "val/loss", "train/end", "canary"}
    assert len(watching.of()) == 41


def test_history_comes_first_and_once(sandbox: Sandbox, connect: Connect, tail: Start) -> None:
    sandbox.serve()
    made = connect("history")
    for step in range(100):
        made.emit({"a": step, "b": -step}, step=step)
    assert made.flush(30)
    watching = tail("history", "--history", "10")
    watching.await_points(20)
    made.emit({"a": 100.0}, step=100)
    watching.await_points(21)
    assert watching.stop() == 0
    assert [step for _, step, _ in watching.of("a")] == list(range(90, 101))
    assert [step for _, step, _ in watching.of("b")] == list(range(90, 100))


def test_run_that_is_over_is_shown_from_history(
    sandbox: Sandbox, connect: Connect, tail: Start
) -> None:
    sandbox.serve()
    made = connect("over")
    for step in range(5):
        made.emit({"a": step}, step=step)
    assert made.finish(30)
    sandbox.drain()
    watching = tail("--history", "100")
    assert [value for _, _, value in watching.await_points(5)] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_reader_that_goes_ends_it(sandbox: Sandbox, train: Train) -> None:
    sandbox.serve()
    train(run="piped", emits=3000, tags=2, interval_s=0.001, end="wait")
    with sandbox.popen("tail", "piped", "--json") as process:
        assert process.stdout
        first = parse_lines(process.stdout.readline())
        assert first[0]["run"] == "piped"
        process.stdout.close()
        assert process.wait(20) == 0
        assert process.stderr
        assert "Traceback" not in process.stderr.read()


def test_one_that_does_not_read_delays_nobody(sandbox: Sandbox, train: Train) -> None:
    sandbox.serve()
    with sandbox.popen("tail", "deaf", "--json") as process:
        run = train(run="deaf", emits=4000, tags=20, limit=100)
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        run.record["limit"] = 0
        assert run.finished()["finish"]
        sandbox.drain()
        process.kill()

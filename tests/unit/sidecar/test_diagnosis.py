"""The parts of `doctor` by themselves: isolation, judged curves, the end of an event file."""

from __future__ import annotations

import fcntl
import math
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from sidestep.client import outbox_file
from sidestep.proto import Hello, RunSpec
from sidestep.sidecar.cli.diagnosis import COMPLAINTS, outboxes
from sidestep.sidecar.cli.diagnosis.curves import judge
from sidestep.sidecar.cli.diagnosis.event_tail import Point, Tail, read_tail
from sidestep.sidecar.cli.diagnosis.finding import Finding, Level
from sidestep.sidecar.cli.diagnosis.isolate import doing, run_all, tell
from sidestep.sidecar.sinks.event_file import record, version_record
from sidestep.sidecar.sinks.scalar_events import ScalarEvents
from tests.support.event_reader import block

NOW_S = 1_700_000_000.0


# --- isolation ---------------------------------------------------------------------------------


def test_each_piece_costs_only_itself() -> None:
    def hang() -> None:
        tell({"known": 1})
        doing("waiting for nobody")
        time.sleep(60)

    def crash() -> None:
        doing("falling")
        os.kill(os.getpid(), signal.SIGTERM)

    def fail() -> None:
        raise LookupError("no such thing")

    def busy() -> str:
        until = time.process_time() + 0.8  # longer than the silence that is taken for a hang
        while time.process_time() < until:
            pass
        return "done"

    began = time.monotonic()
    found = run_all(
        {
            "hang": hang,
            "crash": crash,
            "fail": fail,
            "busy": busy,
            "large": lambda: "x" * 3_000_000,
            "odd": lambda: {1, 2},
            "printing": lambda: os.write(1, b"what a library says"),
        },
        stall_s=0.5,
        most_s=30,
    )
    assert time.monotonic() - began < 20
    assert "hangs" in found["hang"].problem
    assert "waiting for nobody" in found["hang"].problem
    assert found["hang"].parts == [{"known": 1}], "what was told before is kept"
    assert "SIGTERM (at: falling)" in found["crash"].problem
    assert "LookupError: no such thing" in found["fail"].problem
    assert (found["busy"].value, found["busy"].problem) == ("done", "")
    assert found["large"].value == "x" * 3_000_000
    assert "TypeError" in found["odd"].problem
    assert found["printing"].value == 19


def test_one_that_is_never_done_is_given_up() -> None:
    def spin() -> None:
        while True:
            pass

    assert "not done after 0.3 s" in run_all({"spin": spin}, stall_s=9, most_s=0.3)["spin"].problem


# --- curves ------------------------------------------------------------------------------------


def points(*values: float, every_s: float = 1.0, first: int = 0) -> list[Point]:
    end = NOW_S - every_s * len(values)
    return [(first + i, end + every_s * i, value) for i, value in enumerate(values)]


def checks(tail: Tail, *, alive: bool = False) -> dict[str, Level]:
    return {f.check: f.level for f in judge("r", tail, alive=alive, now_s=NOW_S)}


def falling(n: int) -> list[float]:
    return [1 / (i + 1) for i in range(n)]


def test_what_is_normal_is_silent() -> None:
    for curves in (
        {"loss": points(*falling(100))},
        {"loss": points(*[0.5] * 19)},  # too few to say
        {
            "loss": points(*falling(50)),
            "lr": points(*[1e-3] * 50),
            "optim/lr0": points(*[1.0] * 50),
        },
        {"loss": points(*falling(50)), "x_n_images": points(*[256.0] * 50)},
        {"loss": [(7, NOW_S, float(i)) for i in range(3)]},
        {"system/cpu_percent": points(*[0.0] * 50), "loss": points(*falling(50))},
        {"val/loss": points(*falling(5), every_s=3600)},  # once an hour
        {"loss": points(*falling(20), math.nan)},  # one overflow of a scaler
    ):
        assert checks(Tail(curves=curves), alive=True) == {"curves": Level.OK}, curves


def test_what_is_not_normal() -> None:
    flat = Tail(curves={"loss": points(*falling(30), *[0.5] * 25)})
    assert checks(flat) == {"curves.constant": Level.WARNING}
    side = Tail(curves={"loss": points(*falling(60)), "acc": points(*[0.1] * 60)})
    assert checks(side) == {"curves.constant": Level.NOTE}, "one of several may well be so"
    step = Tail(curves={"loss": [(7, NOW_S + i, 1 / (i + 1)) for i in range(25)]})
    assert checks(step) == {"curves.step": Level.WARNING}
    nan = Tail(curves={"loss": points(*falling(10), *[math.nan] * 5)})
    assert checks(nan) == {"curves.nan": Level.WARNING}
    still = Tail(curves={"loss": [(s, t - 600, v) for s, t, v in points(*falling(60))]})
    assert checks(still, alive=True) == {"curves.still": Level.WARNING}
    assert checks(still) == {"curves": Level.OK}, "a run that is over stands still"
    hidden = Tail(hidden=12, hidden_from=3)
    assert checks(hidden) == {"curves.hidden": Level.WRONG}
    for tail in (flat, side, step, nan, still, hidden):
        for found in judge("r", tail, alive=True, now_s=NOW_S):
            assert found.do
            assert found.complaint in COMPLAINTS


def test_a_finding_is_harmless_for_a_terminal() -> None:
    finding = Finding("a.b", Level.NOTE, "run \x1b[31mred\x1b[0m", "rm '\r\n'", run="\x07")
    assert "\x1b" not in finding.says
    assert "\n" not in finding.do
    assert finding.run == "\\x07"


# --- event files -------------------------------------------------------------------------------


def write_events(path: Path, steps: range) -> list[bytes]:
    """An event file of these steps, as the sink writes it; its records."""
    rows = block(["loss", "b"], list(steps), [[1 / (s + 1), s] for s in steps])
    body = b"".join(bytes(piece) for piece in ScalarEvents().records(rows))
    data = version_record(1.0) + body
    path.write_bytes(data)
    return [data]


def test_the_end_of_a_file_is_what_the_whole_ends_with(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1700000000.h.1.0"
    write_events(path, range(2000))
    whole = read_tail(str(tmp_path), 1 << 30)
    assert not whole.windowed
    assert [step for step, _, _ in whole.curves["loss"]] == list(range(2000))
    draw = random.Random(7)
    size = path.stat().st_size
    for window in [1, 11, 12, 100, *(draw.randrange(1, size) for _ in range(40))]:
        tail = read_tail(str(tmp_path), window)
        shown = tail.curves.get("loss", [])
        assert shown == whole.curves["loss"][2000 - len(shown) :]
        assert len(shown) >= window // 53 - 1  # bytes of the longest record
        assert (tail.torn_at, tail.damaged_at, tail.windowed) == (None, None, True)


@pytest.mark.parametrize("cut", [1, 4, 5, 20, 40])
def test_a_torn_end(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "events.out.tfevents.1700000000.h.1.0"
    write_events(path, range(50))
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    tail = read_tail(str(tmp_path))
    assert tail.torn_at is not None
    assert data[: tail.torn_at] == path.read_bytes()[: tail.torn_at]
    assert len(tail.curves["loss"]) == 49


def test_damage_is_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1700000000.h.1.0"
    write_events(path, range(50))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    tail = read_tail(str(tmp_path))
    assert tail.damaged_at is not None
    assert tail.damaged_at <= len(data) // 2
    path.write_bytes(version_record(1.0) + record(b"\xff\xff no event"))
    assert read_tail(str(tmp_path)).damaged_at is None, "its bytes are what was written"
    assert read_tail(str(tmp_path / "none")).path == ""


# --- outboxes ----------------------------------------------------------------------------------


def test_an_outbox_is_looked_at_and_left_alone(tmp_path: Path) -> None:
    """Its lock is asked for and not taken; a process of its own does so, as in the command."""
    spec = RunSpec("r", "/logs", wandb={})
    made = outbox_file.create([str(tmp_path)], 1 << 20, Hello(b"\x07" * 16, 0, 0, spec, pid=1))

    def look() -> Any:
        return outboxes.look_into(str(tmp_path))

    def is_locked() -> bool:
        fd = os.open(made.path, os.O_RDWR)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        return False

    for _ in range(2):
        (one,) = run_all({"look": look}, 5, 10)["look"].value
        assert one["alive"]
        assert (one["run"], one["wandb"], one["fullness"], one["dropped"]) == ("r", True, 0, 0)
        assert run_all({"locked": is_locked}, 5, 10)["locked"].value is True
    made.close(delete=False)
    (one,) = run_all({"look": look}, 5, 10)["look"].value
    assert not one["alive"]
    Path(made.path).write_bytes(Path(made.path).read_bytes()[:5000])
    (one,) = run_all({"look": look}, 5, 10)["look"].value
    assert one["damaged"]
    Path(made.path).rename(f"{made.path}.damaged")
    (one,) = run_all({"look": look}, 5, 10)["look"].value
    assert "put aside" in one["damaged"]

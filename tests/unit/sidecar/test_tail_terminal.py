"""`sidestep tail` in real windows of tmux: what it shows, what keys do, what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from sidestep.proto.paths import RuntimePaths
from tests.support.tmux import Window
from tests.support.waiting import wait_until
from tests.unit.sidecar.fake_daemon import FakeDaemon, run_status

SIDESTEP = (sys.executable, "-m", "sidestep.sidecar")
KEYS_LINE = "/ filter  space pause  n p runs  ? help  q quit"


@pytest.fixture
def paths() -> Iterator[RuntimePaths]:
    with tempfile.TemporaryDirectory(prefix="ss-") as directory:  # tmp_path can be too long
        yield RuntimePaths(directory)


@pytest.fixture
def daemon(paths: RuntimePaths) -> Iterator[FakeDaemon]:
    with FakeDaemon(paths) as daemon:
        yield daemon


Open = Callable[..., Window]


@pytest.fixture
def window(paths: RuntimePaths) -> Iterator[Open]:
    opened: list[Window] = []

    def make(width: int = 80, height: int = 24, **env: str) -> Window:
        inherited = {**os.environ, "SIDESTEP_RUNTIME_DIR": paths.directory, **env}
        inherited.pop("NO_COLOR", None) if "NO_COLOR" not in env else None
        opened.append(Window(paths.directory, width, height, inherited))
        return opened[-1]

    yield make
    for each in opened:
        each.__exit__(None, None, None)


def tail_process(paths: RuntimePaths) -> psutil.Process:
    """The tail that runs in the test's window."""

    def found() -> psutil.Process | None:
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("SIDESTEP_RUNTIME_DIR") == paths.directory
                if mine and "tail" in process.cmdline():
                    return process
            except psutil.Error:
                continue
        return None

    process = wait_until(found, 20, "no tail runs")
    assert process is not None
    return process


LONG = [f"gradients/encoder.blocks.{index}.attention.qkv.weight" for index in range(500)]


def train(daemon: FakeDaemon, run: str = "vit-b", steps: int = 30, **more: Any) -> None:
    """A run with 504 tags, one of them bad, one of several ranks."""
    started = time.time() - steps / 10
    for step in range(steps):
        values = {
            "train/loss": 1 / (step + 1),
            "train/acc": 0.5,
            "train/acc_std": 0.125,
            "train/acc_min": 0.25,
            "train/acc_max": 0.75,
            "val/bad\x1b[2J\x07\u202e\n損失": float("nan"),
            **dict.fromkeys(LONG, 0.5),
        }
        daemon.emit(run, values, step, started + step / 10)
    daemon.runs = [*daemon.runs, run_status(run, last_step=steps - 1, **more)]


ALARM: dict[str, Any] = {
    "alarm": "COLLAPSED",
    "alarms": [
        {"tag": "train/context", "state": "COLLAPSED", "since_step": 9, "reason": "rank 1 of 32"},
        {"tag": "train/target", "state": "WARN", "since_step": 11, "reason": "rank 9 of 32"},
    ],
}


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
def test_shows_all_and_gives_the_terminal_back(
    daemon: FakeDaemon, window: Open, width: int, height: int
) -> None:
    daemon.gpus = [
        {
            "index": 0,
            "name": "NVIDIA H100",
            "values": {"utilization": 97.0, "memory_used_gb": 40.0, "memory_total_gb": 80.0},
        }
    ]
    slow = {"rank": 3, "host": "node7", "reason": "is 12 steps behind"}
    train(daemon, total_steps=1000, straggler=slow, **ALARM)
    made = window(width, height)
    made.command("stty", "-a")
    modes = made.wait_for("echoke")
    made.type_text("clear")
    made.type("Enter")
    made.command(*SIDESTEP, "tail", "vit-b")
    made.wait_for(lambda text: "running" in text and KEYS_LINE in text)
    lines = made.lines()
    assert len(lines) == height
    assert re.match(r"sidestep tail  vit-b  running  step 29 of 1,000  .* left  ", lines[0])
    assert lines[1] == "ALARM COLLAPSED train/context since step 9: rank 1 of 32; 1 more"
    assert lines[2] == "COLLAPSED train/context   WARN train/target"
    assert lines[3] == "rank 3 on node7 is 12 steps behind"
    assert lines[4].startswith("durable 0 · held 0 · dropped 0")
    assert lines[5].startswith("GPU 0 H100 ▕███████████▋▏  97 %  ▕██████      ▏ 40.0/80 GB")
    (loss,) = (line for line in lines if line.startswith("  loss"))
    assert "0.0333333" in loss
    assert "█▄" in loss
    (acc,) = (line for line in lines if line.startswith("  acc"))
    assert "0.5  ± 0.125" in acc
    assert ("[0.25 … 0.75]" in acc) == (width == 200)
    assert any(line.startswith("▾ gradients/  500 tags") for line in lines)
    assert lines[7].endswith("age")
    (bad,) = (line for line in lines if line.startswith("val/bad"))
    assert "nan" in bad
    styled = made.text(styles=True)
    assert re.search(r"\x1b\[(\d+;)*31m(\x1b\[[0-9;]*m)*ALARM", styled)

    daemon.wait_for_followers()
    daemon.emit("vit-b", {"train/loss": 123.5}, 30)
    made.wait_for("123.5")
    made.type("C-z")
    made.wait_for("Stopped")
    made.command("fg")
    made.wait_for(lambda text: text.startswith("sidestep tail  vit-b"))
    made.resize(100, 30)
    made.wait_for(lambda text: KEYS_LINE in text.split("\n")[29])

    made.type("q")
    made.wait_for(lambda text: text.rstrip().endswith("$"))
    made.command("echo", "code", "$?")
    made.type_text("clear; echo code $?; stty -a")
    made.type("Enter")
    text = made.wait_for(lambda text: "code 0" in text and "echoke" in text)
    for mode in ("icanon", "echo", "isig", "onlcr"):
        assert mode in modes.split()
        assert mode in text.split()


def test_keys(daemon: FakeDaemon, window: Open) -> None:
    train(daemon, "other")
    train(daemon, "vit-b")
    made = window()
    made.command(*SIDESTEP, "tail", "vit-b")
    made.wait_for(lambda text: "vit-b" in text and "train/" in text)
    daemon.wait_for_followers()

    made.type_text("/LOSS")
    text = made.wait_for("filter: /LOSS")
    assert "train/loss" in text
    assert "gradients" not in text
    made.type("Enter")
    made.wait_for(lambda text: "/LOSS  " in text and "filter:" not in text)
    made.type("Escape")  # alone: it is told from an arrow by what does not follow
    made.wait_for("▾ gradients/")

    made.type("G")
    text = made.wait_for("…499.att")
    assert "▾ gradients/  500 tags" in text  # the group of what is shown, though it began before
    made.type("PageUp")
    made.wait_for(lambda text: "…499.att" not in text)
    made.type("Enter")
    made.wait_for("▸ gradients/  500 tags")
    made.type("Z")
    made.wait_for("▸ train/")
    made.type("Z", "g")
    made.wait_for("▾ train/")

    made.type("Space")
    made.wait_for("PAUSED")
    daemon.emit("vit-b", {"train/loss": 123.5}, 31)
    made.wait_for("step 31")
    assert "123.5" not in made.text()
    made.type("Space")
    made.wait_for(lambda text: "123.5" in text and "PAUSED" not in text)

    made.type("s", "s")
    text = made.wait_for("by value")
    first, second = text.split("\n")[4:6]  # what is no number before all others
    assert first.startswith("val/bad")
    assert second.startswith("train/loss")
    made.type("?")
    made.wait_for("fold and unfold the group")
    made.type("x")
    made.wait_for("by value")
    made.type("s")

    made.type("n")
    made.wait_for(lambda text: text.startswith("sidestep tail  other"))
    made.wait_for(lambda text: "0.0333333" in text and "run 1 of 2" in text)
    daemon.wait_for_followers(2)
    daemon.emit("other", {"train/loss": 77.25}, 31)
    made.wait_for("77.25")
    made.type("BTab")
    made.wait_for(lambda text: text.startswith("sidestep tail  vit-b") and "123.5" in text)
    made.type("C-c")
    made.wait_for(lambda text: text.rstrip().endswith("$"))


def test_waits_for_a_daemon_says_so_and_comes_back(paths: RuntimePaths, window: Open) -> None:
    made = window()
    made.command(*SIDESTEP, "tail")
    made.wait_for("no daemon just now: waiting for it")
    with FakeDaemon(paths) as daemon:
        daemon.runs = [run_status("vit-b")]
        made.wait_for("Waiting for the first run")
        daemon.emit("vit-b", {"train/loss": 0.5}, 1)
        made.wait_for(lambda text: "vit-b  running" in text and "train/loss" in text)
        daemon.mute = True
        made.wait_for(lambda text: "says nothing" in text and "train/loss" in text)
        daemon.mute = False
        made.wait_for(lambda text: "says nothing" not in text)
        journal = daemon.journal
    made.wait_for(lambda text: "no daemon just now" in text and "train/loss" in text)
    with FakeDaemon(paths, journal) as daemon:
        daemon.runs = [run_status("vit-b")]
        made.wait_for("vit-b  running")
        daemon.emit("vit-b", {"train/loss": 0.75}, 2)
        made.wait_for("0.75")


@pytest.mark.parametrize("how", [signal.SIGTERM, "crash"])
def test_leaves_the_terminal_sane_however_it_ends(
    daemon: FakeDaemon, paths: RuntimePaths, window: Open, how: signal.Signals | str
) -> None:
    train(daemon, steps=3)
    made = window()
    made.command(*SIDESTEP, "tail")
    made.wait_for(KEYS_LINE)
    process = tail_process(paths)
    if isinstance(how, signal.Signals):
        process.send_signal(how)
    else:
        daemon.wait_for_followers()
        daemon.break_feed()
    wait_until(lambda: not process.is_running(), 20, "it does not end")
    made.type_text("clear; tput cols; stty -a; echo code $?")
    made.type("Enter")
    text = made.wait_for(lambda text: "code 0" in text and "isig" in text)
    assert {"icanon", "echo", "isig"} <= set(text.split())


def test_a_quiet_screen_costs_next_to_nothing(
    daemon: FakeDaemon, paths: RuntimePaths, window: Open
) -> None:
    """Ages grow, and a status comes ten times a second; nothing is cleared, little is written."""
    train(daemon)
    made = window()
    made.command(*SIDESTEP, "tail")
    made.wait_for(KEYS_LINE)
    daemon.wait_for_followers()
    process = tail_process(paths)
    made.record()
    cpu_s, began = sum(process.cpu_times()[:2]), time.monotonic()
    before = len(made.recorded())
    threading.Event().wait(2.0)
    data = made.recorded()[before:]
    span_s = time.monotonic() - began
    spent_s = sum(process.cpu_times()[:2]) - cpu_s
    print(f"{len(data) / span_s:.0f} bytes a second, {60 * spent_s / span_s:.1f} CPU s a minute")
    assert len(data) < 1500 * span_s
    assert b"\x1b[2J" not in data
    assert b"\n" not in data
    assert data.count(b"\x1b[?2026h") == data.count(b"\x1b[?2026l")


@pytest.mark.parametrize(("env", "table"), [({"NO_COLOR": "1"}, True), ({"TERM": "dumb"}, False)])
def test_no_colours_and_no_table_where_they_are_not_wanted(
    daemon: FakeDaemon, window: Open, env: dict[str, str], table: bool
) -> None:
    train(daemon, steps=3, **ALARM)
    made = window()
    made.record()
    assignments = " ".join(f"{key}={value}" for key, value in env.items())
    made.type_text(f"{assignments} {' '.join(SIDESTEP)} tail vit-b --history 1")
    made.type("Enter")
    made.wait_for(KEYS_LINE if table else "blocks.499.attention.qkv.weight 0.5")
    data = made.recorded()
    assert (b"\x1b[?1049h" in data) == table
    assert re.search(rb"\x1b\[[0-9;]*3[0-7]m", data) is None

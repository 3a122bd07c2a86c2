"""The live table's parts without a terminal: keys, layout, what is written, and how it is cut."""

from __future__ import annotations

import os
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from sidestep.sidecar.cli import wording
from sidestep.sidecar.cli.follow import Block, Follower
from sidestep.sidecar.cli.tail_browse import KEYS, Browser
from sidestep.sidecar.cli.tail_keys import KeyReader
from sidestep.sidecar.cli.tail_model import StepClock, TailModel
from sidestep.sidecar.cli.tail_screen import Screen
from sidestep.sidecar.cli.tail_spans import Line, columns, fitted, plain, sized, width_of
from sidestep.sidecar.cli.tail_view import ASCII_GLYPHS, Glyphs, frame
from sidestep.sidecar.control.total_steps import total_steps

NOW = 1_700_000_000.0

# --- keys ----------------------------------------------------------------------------------------

SEQUENCES = {
    b"j": ["j"],
    b"\x1b[A": ["up"],
    b"\x1bOB": ["down"],
    b"\x1b[5~": ["pageup"],
    b"\x1b[6;5~": ["pagedown"],
    b"\x1b[1;5D": ["left"],
    b"\x1b[Z": ["backtab"],
    b"\t": ["tab"],
    b"\r": ["enter"],
    b"\x7f": ["backspace"],
    "損".encode(): ["損"],
    b"\x1b[200~": [],
    b"\x1b[<0;1;1M": [],
    b"\x00": [],
}


@pytest.mark.parametrize(("data", "keys"), SEQUENCES.items())
def test_keys_have_names(data: bytes, keys: list[str]) -> None:
    assert KeyReader().feed(data) == keys


@given(st.lists(st.sampled_from(sorted(SEQUENCES)), max_size=8), st.data())
def test_keys_come_out_however_they_are_cut(pressed: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(pressed)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    reader, found = KeyReader(), list[str]()
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += reader.feed(whole[start:end])
    assert found == [key for each in pressed for key in SEQUENCES[each]]
    assert not reader.pending


def test_escape_alone_is_a_key_when_nothing_follows() -> None:
    reader = KeyReader()
    assert reader.feed(b"\x1b") == []
    assert reader.pending
    assert reader.flush() == ["esc"]
    assert reader.feed(b"\x1bq") == ["esc", "q"]
    assert reader.feed(b"\x1b\x1b[A") == ["esc", "up"]


@given(st.binary(max_size=80))
def test_any_bytes_are_keys_or_nothing_and_nothing_is_held_for_ever(data: bytes) -> None:
    reader = KeyReader()
    keys = reader.feed(data) + reader.feed(b"\x1b[" + b"1" * 40) + reader.flush()
    assert all(key.isprintable() and key for key in keys)
    assert not reader.pending
    assert reader.feed(b"q")[-1:] == ["q"]


# --- what is shown -------------------------------------------------------------------------------

SYLLABLES = (
    *("a", "/", "_std", "_min", "_max", "train/", "loss", "\u640d", "\u00e9", "e\u0301", "\u0301"),
    *("\U0001f469\u200d\U0001f467", "\x1b[2J", "\n", "\t", "\x07", "\x9b31m", "\u202e", "\u200b"),
    *("\ud800", "\uff11", "\ufdfa"),
)
TAGS = st.lists(st.sampled_from(SYLLABLES), max_size=8).map("".join) | st.text(max_size=20)
NUMBERS = st.floats() | st.just(0.5)


def model_of(tags: list[str], values: list[float], status: dict[str, Any]) -> TailModel:
    model = TailModel()
    model.show("vit-b\x1b]0;x\x07")
    for step in range(3):
        model.add(Block("vit-b", tags, [step], [NOW + step], [values]))
    model.status = status
    return model


def status_of(tag: str) -> dict[str, Any]:
    run = {
        "run": "vit-b\x1b]0;x\x07",
        "state": tag or "running",
        "last_step": 7,
        "total_steps": 1000,
        "alarm": "WARN",
        "alarms": [{"tag": tag, "state": "WARN", "since_step": 3, "reason": tag}] * 2,
        "straggler": {"rank": 3, "host": tag, "reason": tag},
        "sinks": [{"name": tag, "state": "degraded", "error": tag}],
    }
    gpus = [{"index": i, "name": tag, "values": {"utilization": 120.0}} for i in range(9)]
    return {"runs": [run, {"run": tag}], "gpus": gpus}


PRESSED = st.lists(
    st.sampled_from(
        ["j", "k", "G", "g", "pagedown", "pageup", "enter", "Z", "s", " ", "?", "/", "a"]
    )
    | st.sampled_from(["esc", "backspace", "n", "\u0301"]),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(TAGS, min_size=1, max_size=12, unique=True),
    st.data(),
    st.tuples(st.integers(1, 140), st.integers(1, 50)),
    PRESSED,
)
def test_no_tag_leaves_its_line_or_steers_the_terminal(
    tags: list[str], data: st.DataObject, size: tuple[int, int], pressed: list[str]
) -> None:
    values = data.draw(st.lists(NUMBERS, min_size=len(tags), max_size=len(tags)))
    model, browser = model_of(tags, values, status_of(tags[0])), Browser()
    for glyphs in (Glyphs(), ASCII_GLYPHS):
        for key in [None, *pressed]:
            if key is not None:
                browser.press(key, model, NOW + 5)
            lines = frame(model, *size, NOW + 5, glyphs, browser)
            assert len(lines) <= size[1]
            for line in lines:
                assert width_of(line) <= size[0]
                assert plain(line).isprintable()
                plain(line).encode()


def browse(model: TailModel, *pressed: str, size: tuple[int, int] = (80, 24)) -> list[str]:
    browser = Browser()
    lines = frame(model, *size, NOW + 5, browser=browser)
    for key in pressed:
        browser.press(key, model, NOW + 5)
        lines = frame(model, *size, NOW + 5, browser=browser)
    return [plain(line) for line in lines]


MANY = [f"train/{index}" for index in range(60)] + ["lr", "val/loss"]


def test_the_cursor_goes_through_all_lines_and_the_window_with_it() -> None:
    model = model_of(MANY, [0.5] * len(MANY), {})
    seen: set[str] = set()
    for many in range(70):
        seen.update(line.split()[0] for line in filter(None, browse(model, *["down"] * many)))
    assert {*map(str, range(60)), "lr", "val/loss"} <= seen
    assert any(line.startswith("lr") for line in browse(model, "G"))
    assert browse(model, "G", "g") == browse(model)
    assert browse(model, "pagedown")[3] == "▾ train/  60 tags"


def test_in_a_group_losses_come_first_and_the_many_statistics_of_one_thing_last() -> None:
    statistics = [f"train/context_{name}" for name in "abcdefgh"]
    model = model_of([*statistics, "train/acc", "train/z_loss", "train/lr"], [0.5] * 11, {})
    shown = [line.split()[0] for line in browse(model) if " 0.5 " in line]
    assert shown == ["z_loss", "acc", "lr", *(f"context_{name}" for name in "abcdefgh")]


def test_filters_are_parts_or_globs_in_any_case() -> None:
    model = model_of(MANY, [0.5] * len(MANY), {})
    for wanted, found in (("LOSS", ["val/loss"]), ("*ain/5?", [f"{n}" for n in range(50, 60)])):
        lines = browse(model, "/", *wanted, "enter")
        rows = [line.split()[0] for line in lines if " 0.5 " in line]
        assert rows == found
    assert "No tag has that in it." in browse(model, "/", "x", "y")
    assert browse(model, "/", "x", "y", "esc") == browse(model)


def test_a_pause_freezes_the_table_and_not_what_is_collected() -> None:
    model, browser = model_of(["a"], [0.5], {}), Browser()
    browser.press(" ", model, NOW + 5)
    before = frame(model, 80, 24, NOW + 5, browser=browser)
    model.add(Block("vit-b", ["a", "b"], [3], [NOW + 3], [[7.5, 1.0]]))
    assert frame(model, 80, 24, NOW + 60, browser=browser)[2:] == before[2:]
    browser.press(" ", model, NOW + 60)
    assert any(" 7.5 " in plain(line) for line in frame(model, 80, 24, NOW + 60, browser=browser))


def test_the_help_names_every_key_and_fits_the_smallest_terminal() -> None:
    lines = browse(model_of(["a"], [0.5], {}), "?")[2:]
    shown = [keys for keys, _ in KEYS if any(line.startswith(f"{keys} ") for line in lines)]
    assert shown == [keys for keys, _ in KEYS]


def test_ranks_are_one_line_and_partial_ones_say_so() -> None:
    tags = ["acc", "acc_std", "acc_min", "acc_max", "acc_ranks", "other_std"]
    model = model_of(tags, [0.5, 0.125, 0.25, 0.75, 3.0, 9.0], {})
    lines = browse(model, size=(140, 24))
    (line,) = (line for line in lines if line.startswith("acc"))
    assert "0.5  ± 0.125 [0.25 … 0.75] 3 ranks" in line
    assert any(line.startswith("other_std") for line in lines)


# --- steps and time ------------------------------------------------------------------------------


def test_the_steps_rate_is_of_training_and_fades() -> None:
    clock = StepClock()
    for step in range(0, 100, 10):
        clock.add(step, NOW + step * 2)
        clock.add(step, NOW + step * 2 + 1)
    assert clock.rate(NOW + 180) == pytest.approx(0.5)
    assert clock.rate(NOW + 190) == pytest.approx(0.5)
    assert clock.rate(NOW + 2000) < 0.1


def test_the_time_left_is_told_while_it_runs() -> None:
    status = {"runs": [{"run": "r", "state": "running", "last_step": 19, "total_steps": 79}]}
    model = TailModel()
    model.show("r")
    for step in range(20):
        model.add(Block("r", ["a"], [step], [NOW + step], [[0.5]]))
    model.status = status
    assert plain(frame(model, 80, 24, NOW + 19)[0]).startswith(
        "sidestep tail  r  running  step 19 of 79  1 min left  1 steps/s"
    )
    status["runs"][0]["state"] = "finished"
    assert "left" not in plain(frame(model, 80, 24, NOW + 19)[0])


def test_training_that_goes_on_from_a_checkpoint_counts_from_there() -> None:
    model = TailModel()
    model.show("r")
    for step in (*range(0, 500, 10), *range(200, 260)):
        time = NOW + (step if step % 10 == 0 and step < 200 else 1000 + step)
        model.add(Block("r", ["a"], [step], [time], [[0.5]]))
        model.add(Block("r", ["epoch/b"], [step // 100], [time], [[0.5]]))
    assert model.last_step == 259
    assert model.step_rate(NOW + 1259) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("config", "total"),
    [
        ({}, None),
        ({"total_steps": 100}, 100),
        ({"max_steps": -1, "trainer": {"max_steps": 500.0}}, 500),
        ({"training.num_training_steps": 7}, 7),
        ({"optim": {"total-steps": 9}, "max_steps": 8}, 9),
        ({"epochs": 3, "steps_per_epoch": 10}, 30),
        ({"train": {"num_epochs": 3}, "data": {"steps_per_epoch": 10}}, 30),
        ({"epochs": 3}, None),
        ({"steps": 300, "sampler": {"max_iters": 0}}, 300),
        ({"diffusion": {"steps": 50}}, None),
        ({"total_steps": True, "max_steps": "100", "max_iters": 0.5}, None),
        ({"total_steps": float("nan")}, None),
        ({"total_steps": 1 << 70}, None),
        ({"a": {"b": {"c": {"d": {"total_steps": 5}}}}}, None),
    ],
)
def test_the_total_is_found_by_its_usual_names(config: dict[str, Any], total: int | None) -> None:
    assert total_steps(config) == total


def test_another_run_is_followed_from_its_history_on() -> None:
    follower = Follower("a", ["x*"], 5)
    follower.request()
    follower.on_history({"daemon_id": 1, "row": 10, "run": "a", "points": [], "runs": []})
    follower.on_status({"daemon": {"daemon_id": 1}})
    follower.follow("b")
    assert follower.topics[0] == b"b\0"
    assert follower.request() == {"run": "b", "tags": ["x*"], "points": 5, "after": None}
    late = {"run": "a", "row": 11, "daemon_id": 1, "scalars": [[["x"], [1], [NOW], [[1.0]]]]}
    assert follower.on_feed(late) == []


# --- what is written -----------------------------------------------------------------------------


class Terminal:
    """What a terminal would show of the bytes that a `Screen` writes: a grid, and no more."""

    def __init__(self, width: int, height: int) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self.screen = Screen(self._write, None)
        self.size = width, height
        self._grid = [[" "] * width for _ in range(height)]

    def draw(self, lines: list[Line]) -> str:
        self.screen.draw(lines, self.size)
        written = b""
        try:
            while chunk := os.read(self._read, 65536):
                written += chunk
        except BlockingIOError:
            pass
        self._obey(written.decode())
        return written.decode()

    def _obey(self, text: str) -> None:
        row = column = 0
        for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[^\x1b]", text):
            if part.endswith("H") and part[0] == "\x1b":
                row, column = (int(number) - 1 for number in part[2:-1].split(";"))
            elif part == "\x1b[K":
                self._grid[row][column:] = [" "] * (self.size[0] - column)
            elif part == "\x1b[2J":
                self._grid = [[" "] * self.size[0] for _ in self._grid]
            elif part[0] != "\x1b":
                self._grid[row][min(column, self.size[0] - 1)] = part
                column += 1

    def shown(self) -> list[str]:
        return ["".join(row) for row in self._grid]

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


PIECES = st.tuples(st.text("ab ▁█", max_size=6), st.sampled_from(["", "bold", "red", "dim cyan"]))
LINES = st.lists(st.lists(PIECES, max_size=5), max_size=5)


@given(st.lists(LINES, min_size=1, max_size=5))
def test_the_screen_shows_each_frame_whatever_stood_there(frames: list[list[Line]]) -> None:
    terminal = Terminal(20, 4)
    try:
        for lines in frames:
            cut = [fitted(line, 20, "…") for line in lines]
            terminal.draw(cut)
            expected = [plain(line).ljust(20) for line in cut[:4]]
            assert terminal.shown() == expected + [" " * 20] * (4 - len(expected))
            assert terminal.draw(cut) == ""  # nothing is new
    finally:
        terminal.close()


def test_only_what_differs_is_written() -> None:
    terminal = Terminal(40, 2)
    try:
        terminal.draw([[("train/loss ", ""), ("0.123456", "bold"), (" 3s", "dim")]])
        written = terminal.draw([[("train/loss ", ""), ("0.123457", "bold"), (" 3s", "dim")]])
        assert written == "\x1b[?2026h\x1b[1;19H\x1b[1m7\x1b[0m\x1b[?2026l"
    finally:
        terminal.close()


@given(st.text(max_size=30), st.integers(0, 20))
def test_nothing_is_wider_than_its_place(text: str, width: int) -> None:
    said = wording.printable(text)
    assert width_of(fitted([(said, "")], width, "…")) <= width
    assert columns(sized(said, width)) == width


def test_what_a_terminal_would_obey_is_not_written() -> None:
    terminal = Terminal(20, 1)
    try:
        written = terminal.draw([[("a\x1b[2Jb\x9b1m\n", "bold")]])
        assert "\x1b[2Jb" not in written
        assert terminal.shown() == ["a?[2Jb?1m?          "]
    finally:
        terminal.close()


def test_the_waiting_screen_obeys_nothing_either() -> None:
    model = TailModel()
    model.show("x\x1b[2J")
    model.status = {"runs": [{"run": "y\x1b[2J", "state": "z\x1b[2J"}]}
    assert all(plain(line).isprintable() for line in frame(model, 80, 24, NOW))


def test_five_hundred_tags_are_drawn_in_milliseconds() -> None:
    tags = [f"gradients/encoder.blocks.{index}.attention.qkv.weight" for index in range(500)]
    model, browser = model_of(tags, [0.5] * 500, status_of("x")), Browser()
    frame(model, 200, 50, NOW, browser=browser)
    began = time.process_time()
    for _ in range(20):
        frame(model, 200, 50, NOW, browser=browser)
    each_s = (time.process_time() - began) / 20
    print(f"{1e3 * each_s:.1f} ms a frame")
    assert each_s < 0.1

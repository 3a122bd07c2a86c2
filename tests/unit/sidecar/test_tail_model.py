"""What `tail` decides and draws, without sockets and without a terminal."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, strategies as st
from rich.cells import cell_len

from sidestep.sidecar.cli import wording
from sidestep.sidecar.cli.follow import Block, Follower, TagFilter
from sidestep.sidecar.cli.tail_model import MAX_TAGS, TailModel, Trend
from sidestep.sidecar.cli.tail_output import json_lines, plain_lines
from sidestep.sidecar.cli.tail_spans import plain
from sidestep.sidecar.cli.tail_view import ASCII_GLYPHS, frame, sparkline

NOW = 1_700_000_000.0


def feed(row: int, run: str = "a", daemon_id: int = 1, **values: float) -> dict[str, Any]:
    """A feed message of one record; its step is its row."""
    scalars = [[list(values or {"x": 0.0}), [row], [NOW + row], [list(values.values()) or [0.0]]]]
    return {"run": run, "row": row, "daemon_id": daemon_id, "scalars": scalars}


def history(
    row: int, steps: tuple[int, ...] = (), run: str | None = "a", daemon_id: int = 1, **more: Any
) -> dict[str, Any]:
    points = [
        {"run": run, "tag": "x", "step": step, "wall_time": NOW + step, "value": 0.0}
        for step in steps
    ]
    return {"daemon_id": daemon_id, "row": row, "run": run, "points": points, "runs": [], **more}


def status(daemon_id: int = 1, **states: str) -> dict[str, Any]:
    runs = [{"run": run, "state": state} for run, state in states.items()]
    return {"daemon": {"daemon_id": daemon_id}, "runs": runs}


def steps_of(blocks: list[Block]) -> list[int]:
    return [step for block in blocks for step in block.steps]


def caught_up(run: str | None = "a", row: int = 10) -> Follower:
    """A follower that has shown everything up to `row` of daemon 1."""
    follower = Follower(run)
    follower.request()
    follower.on_history(history(row))
    follower.on_status(status())
    assert follower.request() is not None
    follower.on_history(history(row))
    assert follower.request() is None
    return follower


# --- what is new ---------------------------------------------------------------------------------


def test_begins_with_history_at_once() -> None:
    follower = Follower("a", ["x*"], 5)
    assert follower.topics == (b"a\0", b"\0status")
    assert follower.request() == {"run": "a", "tags": ["x*"], "points": 5, "after": None}
    assert steps_of(follower.on_history(history(7, (6, 7)))) == [6, 7]


def test_fills_the_hole_before_its_subscription_reached_the_daemon() -> None:
    follower = Follower("a")
    follower.request()
    follower.on_history(history(7))
    assert follower.request() is None  # nothing to catch up with before the feed is heard
    # 8 and 9 were published to nobody; 10 is the first that arrives.
    assert follower.on_feed(feed(10)) == []
    assert follower.request() == {"run": "a", "tags": [], "points": 0, "after": 7}
    assert follower.on_feed(feed(11)) == []
    assert follower.on_feed(feed(12)) == []
    assert steps_of(follower.on_history(history(11, (8, 9, 10, 11)))) == [8, 9, 10, 11, 12]
    assert follower.request() is None
    assert steps_of(follower.on_feed(feed(13))) == [13]


def test_status_alone_proves_the_feed() -> None:
    assert steps_of(caught_up(row=10).on_feed(feed(11))) == [11]


def test_another_daemon_is_asked_for_what_came_in_between() -> None:
    follower = caught_up(row=10)
    assert follower.on_feed(feed(14, daemon_id=2)) == []
    request = follower.request()
    assert request is not None
    assert request["after"] == 10
    reply = history(14, (11, 12, 13, 14), daemon_id=2)
    assert steps_of(follower.on_history(reply)) == [11, 12, 13, 14]
    assert steps_of(follower.on_feed(feed(14, daemon_id=2))) == []
    assert steps_of(follower.on_feed(feed(15, daemon_id=2))) == [15]


def test_silence_voids_the_proof() -> None:
    follower = caught_up(row=10)
    follower.on_silence()
    assert follower.request() is None
    assert follower.on_feed(feed(13)) == []
    follower.request()
    assert steps_of(follower.on_history(history(13, (11, 12, 13)))) == [11, 12, 13]


def test_an_answer_of_the_daemon_before_does_not_count_as_caught_up() -> None:
    follower = caught_up(row=10)
    follower.on_silence()
    follower.on_feed(feed(12))
    follower.request()
    follower.on_feed(feed(15, daemon_id=2))  # restarted while the answer was under way
    assert steps_of(follower.on_history(history(12, (11, 12)))) == [11, 12]
    request = follower.request()
    assert request is not None
    assert request["after"] == 12
    reply = history(15, (13, 14, 15), daemon_id=2)
    assert steps_of(follower.on_history(reply)) == [13, 14, 15]


def test_history_that_was_cut_is_asked_for_again() -> None:
    follower = caught_up(row=10)
    follower.on_silence()
    follower.on_feed(feed(14))
    follower.request()
    assert steps_of(follower.on_history(history(12, (11, 12), more=True))) == [11, 12]
    request = follower.request()
    assert request is not None
    assert request["after"] == 12
    assert steps_of(follower.on_history(history(14, (13, 14)))) == [13, 14]


def test_a_new_journal_counts_from_the_start() -> None:
    follower = caught_up(row=1000)
    follower.on_feed(feed(3, daemon_id=2))
    follower.request()
    assert follower.on_history(history(3, daemon_id=2)) == []
    request = follower.request()
    assert request is not None
    assert request["after"] == 0
    assert steps_of(follower.on_history(history(3, (1, 2, 3), daemon_id=2))) == [1, 2, 3]
    assert steps_of(follower.on_feed(feed(4, daemon_id=2))) == [4]


def test_history_behind_its_own_feed_shows_nothing_twice() -> None:
    follower = caught_up(row=10)
    follower.on_feed(feed(11))
    follower.on_silence()
    follower.on_feed(feed(12))
    follower.request()
    assert steps_of(follower.on_history(history(10))) == [12]
    follower.on_silence()
    follower.on_status(status())
    follower.request()
    follower.on_history(history(11))
    follower.on_silence()
    follower.on_status(status())
    request = follower.request()
    assert request is not None
    assert request["after"] == 12


def test_a_daemon_that_came_later_is_asked_for_all_it_has() -> None:
    follower = Follower("a", history=3)
    follower.on_absence()
    request = follower.request()
    assert request is not None
    assert request["after"] == 0
    assert request["points"] == 0


def test_without_a_name_takes_the_run_that_the_daemon_names() -> None:
    follower = Follower(None)
    assert follower.topics == (b"",)
    follower.request()
    follower.on_history(history(5, run="newest"))
    assert follower.run == "newest"


def test_without_a_name_takes_the_last_to_have_points_and_shows_no_other() -> None:
    follower = Follower(None)
    follower.request()
    points = history(5, (4,), run="old")["points"] + history(5, (5,), run="new")["points"]
    reply = {**history(5, run=None), "points": points}
    assert steps_of(follower.on_history(reply)) == [5]
    assert follower.run == "new"


def test_without_a_name_and_without_points_takes_the_last_that_runs() -> None:
    follower = Follower(None)
    follower.request()
    runs = [{"run": run, "state": state} for run, state in (("a", "running"), ("b", "finished"))]
    follower.on_history({**history(5, run=None), "runs": runs})
    assert follower.run == "a"


def test_without_a_name_takes_the_first_run_that_comes() -> None:
    follower = caught_up(None)
    follower.run = None
    assert steps_of(follower.on_feed(feed(11, run="first"))) == [11]
    assert follower.run == "first"


def test_without_a_name_stays_while_its_run_runs_and_then_goes_on() -> None:
    follower = caught_up(None, row=10)
    assert follower.run == "a"
    assert follower.on_feed(feed(11, run="b")) == []
    follower.on_status(status(a="running", b="running"))
    assert follower.run == "a"
    follower.on_status(status(a="finished", b="running"))
    assert follower.run == "b"
    request = follower.request()
    assert request is not None
    assert (request["run"], request["after"]) == ("b", 10)  # all that came since we look
    assert steps_of(follower.on_history(history(11, (11,), run="b"))) == [11]
    assert steps_of(follower.on_feed(feed(12, run="b"))) == [12]


def test_a_named_run_is_never_left() -> None:
    follower = caught_up("a")
    follower.on_feed(feed(11, run="b"))
    follower.on_status(status(a="finished", b="running"))
    assert follower.run == "a"


class Link:
    """A journal, a feed that loses, and daemons that come and go, around a follower."""

    def __init__(self) -> None:
        self.follower = Follower("a")
        self.seen: list[int] = []
        self.journal = 0
        self.daemon_id = 1
        self.connected = False
        self._asked: dict[str, Any] | None = None
        self.ask()
        self.answer()

    def ask(self) -> None:
        if self._asked is None:
            self._asked = self.follower.request()

    def answer(self) -> None:
        if self._asked is not None:
            after, self._asked = self._asked["after"], None
            first = self.journal if after is None else after
            steps = tuple(range(first + 1, self.journal + 1))
            reply = history(self.journal, steps, daemon_id=self.daemon_id)
            self.seen += steps_of(self.follower.on_history(reply))

    def emit(self) -> None:
        self.journal += 1
        if self.connected:
            message = feed(self.journal, daemon_id=self.daemon_id)
            self.seen += steps_of(self.follower.on_feed(message))

    def status(self) -> None:
        if self.connected:
            self.follower.on_status(status(self.daemon_id))

    def restart(self) -> None:
        self.daemon_id += 1
        self.connected = False
        self._asked = None

    def connect(self) -> None:
        self.connected = True

    def silence(self) -> None:
        if not self.connected:
            self.follower.on_silence()


MOVES = ["emit", "emit", "status", "answer", "restart", "connect", "silence"]


@given(st.lists(st.sampled_from(MOVES)))
def test_every_row_comes_once_and_in_order_whatever_the_link_does(moves: list[str]) -> None:
    link = Link()
    for move in moves:
        getattr(link, move)()
        link.ask()
    link.connect()
    link.status()
    for _ in range(3):
        link.ask()
        link.answer()
    assert link.seen == list(range(1, link.journal + 1))


# --- tags ----------------------------------------------------------------------------------------


def test_filter_keeps_the_columns_that_match_any_glob() -> None:
    block = Block("a", ["train/loss", "val/loss", "lr"], [1, 2], [1.0, 2.0], [[1, 2, 3], [4, 5, 6]])
    wanted = TagFilter(["train/*", "l?"])(block)
    assert wanted is not None
    assert wanted.tags == ["train/loss", "lr"]
    assert wanted.values == [[1, 3], [4, 6]]
    assert TagFilter(["nothing"])(block) is None
    assert TagFilter(["*"])(block) is block
    assert TagFilter([])(block) is block


# --- lines ---------------------------------------------------------------------------------------


@given(st.floats(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=8))
def test_json_lines_are_what_was_emitted_to_the_last_bit(value: float, step: int, tag: str) -> None:
    (line,) = json_lines(Block("r\n", [tag], [step], [NOW], [[value]])).splitlines()
    point = json.loads(line)
    assert list(point) == ["run", "tag", "step", "wall_time", "value"]
    assert (point["run"], point["tag"], point["step"]) == ("r\n", tag, step)
    assert point["wall_time"] == NOW
    assert type(point["value"]) is float
    assert point["value"] == value or (math.isnan(point["value"]) and math.isnan(value))


def test_lines_come_in_the_order_of_emission() -> None:
    block = Block("a", ["x", "y"], [1, 2], [NOW, NOW], [[1.0, 2.0], [3.0, math.inf]])
    assert plain_lines(block) == "1 x 1.0\n1 y 2.0\n2 x 3.0\n2 y inf\n"
    values = [json.loads(line)["value"] for line in json_lines(block).splitlines()]
    assert values == [1.0, 2.0, 3.0, math.inf]


def test_a_tag_cannot_break_a_plain_line_or_steer_a_terminal() -> None:
    block = Block("a", ["x\ny\x1b[2J"], [1], [NOW], [[1.0]])
    assert plain_lines(block) == "1 x\\ny\\x1b[2J 1.0\n"


# --- trends and rates ----------------------------------------------------------------------------


def test_a_trend_keeps_each_value_while_it_can() -> None:
    trend = Trend(cells=8)
    trend.add([1.0, 2.0])
    trend.add([3.0])
    assert trend.cells() == [1.0, 2.0, 3.0]


@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.integers(1, 50))
def test_a_trend_is_means_over_equal_stretches(values: list[float], chunk: int) -> None:
    trend = Trend(cells=8)
    for start in range(0, len(values), chunk):
        trend.add(values[start : start + chunk])
    cells = trend.cells()
    assert len(cells) <= 8
    per_cell = 1
    while len(values) // per_cell >= 8:
        per_cell *= 2
    stretches = [values[start : start + per_cell] for start in range(0, len(values), per_cell)]
    assert cells == pytest.approx([sum(s) / len(s) for s in stretches], abs=1e-6)


def series(model: TailModel, tag: str, times: list[float]) -> None:
    for step, time in enumerate(times):
        model.add(Block("a", [tag], [step], [time], [[0.0]]))


def test_the_rate_is_of_emissions_and_fades_when_they_stop() -> None:
    model = TailModel()
    series(model, "x", [NOW + index / 10 for index in range(100)])
    end = NOW + 9.9
    assert model.rows(1, end)[0].rate == pytest.approx(10, rel=0.1)
    assert model.rows(1, end + 0.3)[0].rate == pytest.approx(10, rel=0.1)
    assert model.rows(1, end + 100)[0].rate < 1
    assert model.rows(1, end + 100)[0].age_s == pytest.approx(100)


@pytest.mark.parametrize("times", [[NOW], [NOW, NOW], [NOW, NOW - 5], [NOW, NOW + 1e6]])
def test_a_rate_survives_any_clock(times: list[float]) -> None:
    model = TailModel()
    series(model, "x", times)
    (row,) = model.rows(1, NOW)
    assert row.rate >= 0
    assert row.age_s >= 0


def test_batches_count_like_single_points() -> None:
    model = TailModel()
    times = [NOW + index / 1000 for index in range(2000)]
    model.add(Block("a", ["x"], list(range(2000)), times, [[0.0]] * 2000))
    assert model.rows(1, NOW + 2)[0].rate == pytest.approx(1000, rel=0.1)


# --- the table -----------------------------------------------------------------------------------


def model_of(*tags: str, run: str = "vit-b") -> TailModel:
    model = TailModel()
    model.show(run)
    for step in range(20):
        model.add(Block(run, list(tags), [step], [NOW + step], [[step / 7] * len(tags)]))
    return model


def text_of(model: TailModel, width: int = 80, height: int = 24) -> list[str]:
    lines = [plain(line) for line in frame(model, width, height, NOW + 20)]
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    return lines


def test_tags_stand_where_people_look_for_them() -> None:
    tags = ["system/x", "gradients/l10", "gradients/l2", "train/loss", "other", "val/loss"]
    rows = model_of(*tags).rows(10, NOW)
    assert [row.tag for row in rows] == [
        *("train/loss", "val/loss", "other", "gradients/l2", "gradients/l10", "system/x")
    ]


def test_a_row_says_it_all() -> None:
    lines = text_of(model_of("train/loss"))
    assert lines[-1].split() == ["train/loss", "2.71429", *lines[-1].split()[2:]]
    tag, value, trend, step, rate, age = lines[-1].split()
    assert (tag, value, step, rate, age) == ("train/loss", "2.71429", "19", "1/s", "1s")
    assert trend.startswith("▁")
    assert trend.endswith("█")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50), (40, 10), (20, 5), (1, 1)])
def test_many_long_tags_fit_any_window(width: int, height: int) -> None:
    tags = [f"gradients/encoder.blocks.{index}.attention.qkv.weight" for index in range(500)]
    lines = text_of(model_of(*tags), width, height)
    if height >= 24:
        assert len(lines) == height
        assert lines[3].startswith("▾ gradients/  500 tags")
        shown = sum(line.startswith("  enc") for line in lines)
        assert lines[-1].startswith(f"… lines 1-{shown + 1} of 501")


def test_long_tags_keep_both_ends() -> None:
    lines = text_of(model_of("train/a_very_long_name_that_does_not_fit_anywhere_at_all/loss"))
    assert lines[-1].startswith("train/a_")
    assert "…" in lines[-1]
    assert "/loss " in lines[-1]


def test_tags_that_differ_look_different() -> None:
    tags = [f"gradients/encoder.blocks.{index}.attention.qkv.weight_norm" for index in range(15)]
    shown = [line.split()[0] for line in text_of(model_of(*tags))[-15:]]
    assert len(set(shown)) == 15
    assert shown[12].startswith("encode")
    assert "…12.att" in shown[12]


@given(st.lists(st.text("ab/1", max_size=12), max_size=8), st.integers(1, 12))
def test_elided_tags_keep_their_width(tags: list[str], width: int) -> None:
    shown = wording.elide_apart(tags, width)
    assert all(len(text) <= width for text in shown)
    assert all(text == tag for text, tag in zip(shown, tags, strict=True) if len(tag) <= width)


def test_all_tags_that_fit_are_shown_without_a_word_about_more() -> None:
    lines = text_of(model_of(*(f"train/{index}" for index in range(20))))
    assert sum(line.startswith("  ") for line in lines) == 20
    assert "lines" not in lines[-1]


def test_tags_beyond_memory_are_counted() -> None:
    model = model_of(*(f"t{index}" for index in range(MAX_TAGS + 3)))
    assert model.tags == MAX_TAGS + 3
    assert text_of(model)[-1].startswith(f"… lines 1-20 of {MAX_TAGS:,}  3 tags too many")


def test_wide_and_hostile_tags_keep_the_columns() -> None:
    lines = text_of(model_of("train/損失" * 4, "train/\x1b[2J\n", "train/loss"))
    assert not any("\x1b" in line or "\n" in line for line in lines)
    ends = {cell_len(line[: line.index("2.71429")]) for line in lines[-3:]}
    assert len(ends) == 1


def test_the_header_says_state_alarm_drops_lag_and_gpu() -> None:
    model = model_of("train/loss")
    model.status = {
        "runs": [
            {
                "run": "vit-b",
                "state": "running",
                "last_step": 12345,
                "alarm": {
                    "tag": "train/context",
                    "state": "COLLAPSED",
                    "step": 900,
                    "reason": "rank 1.2 of 32",
                },
                "records": {"durable": 12000, "held": 1, "dropped": 7, "rejected": 0},
                "sinks": [
                    {"name": "tensorboard", "state": "ok", "lag_records": 0, "error": None},
                    {"name": "wandb", "state": "degraded", "lag_records": 340, "error": "401"},
                ],
            }
        ],
        "gpus": [
            {
                "index": 0,
                "name": "H100",
                "values": {
                    "utilization": 97.4,
                    "memory_used_gb": 61.4,
                    "memory_total_gb": 80.0,
                    "power_w": 612.0,
                },
            }
        ],
    }
    text = "\n".join(text_of(model, 120))
    for said in (
        "vit-b  running  step 12,345",
        "ALARM COLLAPSED train/context since step 900: rank 1.2 of 32",
        "durable 12,000 · held 1 · dropped 7 · rejected 0 · tensorboard ok",
        "wandb degraded, 340 behind: 401",
        "GPU 0 H100 ▕███████████▊▏  97 %  ▕█████████▎  ▏ 61.4/80 GB  612 W",
    ):
        assert said in text


def test_eight_gpus_take_two_lines() -> None:
    model = model_of("train/loss")
    model.status = {"gpus": [{"index": index, "name": "NVIDIA H100"} for index in range(64)]}
    lines = text_of(model)
    assert sum("GPU" in line for line in lines) == 2
    assert any(line.endswith("…") or "(+" in line for line in lines)


def test_without_a_gpu_the_host_is_shown() -> None:
    model = model_of("train/loss")
    model.status = {"gpus": [], "host": {"system/cpu_percent": 63.2, "system/memory_used_gb": 5.1}}
    assert "cpu 63 %  memory 5.1 GB" in text_of(model)


def test_waiting_is_said_in_words() -> None:
    model = TailModel()
    model.show("vit-b")
    model.presence = "absent"
    assert "no daemon just now: waiting for it" in text_of(model)
    model.presence = "there"
    model.status = {"runs": [{"run": "vit-s", "state": "finished"}]}
    lines = text_of(model)
    assert "There is no such run yet. Those that the daemon knows:" in lines
    assert "  vit-s  (finished)" in lines


def test_another_run_starts_with_an_empty_table() -> None:
    model = model_of("train/loss")
    model.show("vit-l")
    assert model.tags == 0
    assert model.last_step is None


# --- small things --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "bars"),
    [
        ([], "    "),
        ([0.0, 1.0], "  ▁█"),
        ([1.0, 1.0], "  ▄▄"),
        ([0.0, math.nan, 1.0], " ▁!█"),
        ([math.inf], "   !"),
        ([0, 0, 1, 1, 2, 2, 3, 3], "▁▃▆█"),
        ([-1e308, 1e308], "  ▄▄"),
    ],
)
def test_sparkline(cells: list[float], bars: str) -> None:
    assert sparkline(cells, 4) == bars


def test_sparkline_without_unicode() -> None:
    assert sparkline([0.0, 1.0], 2, ASCII_GLYPHS) == "_#"


@pytest.mark.parametrize(
    ("text", "width", "shown"), [("abcdef", 6, "abcdef"), ("abcdef", 5, "ab…ef"), ("abc", 1, "a")]
)
def test_elide_middle(text: str, width: int, shown: str) -> None:
    assert wording.elide_middle(text, width) == shown


@pytest.mark.parametrize(
    ("alarm", "line"),
    [
        (None, ""),
        ("", ""),
        ("OK", ""),
        ({"state": "OK", "tag": "t"}, ""),
        ("collapsed", "collapsed"),
        ([{"state": "WARN", "tag": "t"}, {"state": "OK"}], "WARN t"),
    ],
)
def test_alarm(alarm: object, line: str) -> None:
    assert wording.alarm(alarm) == line


def test_a_runs_alarm_is_the_worst_and_names_who_fell_first() -> None:
    warn = {"tag": "a", "state": "WARN", "since_step": 900, "reason": "it shrank"}
    down = {"tag": "b", "state": "COLLAPSED", "since_step": 1200, "reason": "V 0.0001"}
    well = {"tag": "c", "state": "OK", "since_step": 20, "reason": ""}
    assert wording.run_alarm({"alarm": "OK", "alarms": [well]}) == ""
    assert wording.run_alarm({"alarm": "OK"}) == ""
    assert wording.run_alarm({"alarm": "WARN"}) == "WARN"
    assert (
        wording.run_alarm({"alarm": "COLLAPSED", "alarms": [down, well]})
        == "COLLAPSED b since step 1,200: V 0.0001"
    )
    assert wording.run_alarm({"alarm": "COLLAPSED", "alarms": [warn, down, well]}) == (
        "COLLAPSED b since step 1,200: V 0.0001 (first a, WARN); 1 more"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (61, "1 min 1 s"), (660, "11 min"), (3725, "1 h 2 min"), (2e5, "2 d 7 h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(0, "-"), (0.049, "0.049/s"), (12.34, "12.3/s"), (1234, "1.23k/s"), (2.5e6, "2.5M/s")],
)
def test_rate(per_second: float, text: str) -> None:
    assert wording.rate(per_second) == text

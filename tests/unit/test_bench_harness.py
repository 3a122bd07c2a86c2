"""The benchmark's statistics, tables, readers and plan are right; nothing here measures time."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import __main__ as command
from tests.bench.metrics import METRICS, RATIO_GOALS, Metric
from tests.bench.more_systems import ALL_SYSTEMS
from tests.bench.plan import WORKLOADS, Step, applies, selected, steps
from tests.bench.readers import (
    EventTail,
    MissingDataError,
    check_scalars,
    split_events,
    split_wandb,
)
from tests.bench.report import as_json, render, show, show_spread, table
from tests.bench.summary import Spread, lost_ratios, quantile, stored_ratios, summarize
from tests.bench.workloads import NUMBERS, describe, number_pool

SAMPLES = {
    "burst.mean": {
        "sidestep": {0: 4e-6, 1: 2e-6, 2: 3e-6},
        "SummaryWriter": {0: 2e-3, 1: 1.4e-3, 2: 0.9e-3},
        "empty": {0: 1e-7},
    },
    "throughput": {"sidestep": {0: 3e6}, "wandb": {0: 5e4, 1: 6e4}},
}


def framed(*events: bytes) -> bytes:
    return b"".join(struct.pack("<QI", len(e), 0) + e + struct.pack("<I", 0) for e in events)


# --- statistics


@pytest.mark.parametrize(("q", "expected"), [(0.0, 1), (0.5, 5), (0.9, 9), (0.99, 10), (1.0, 10)])
def test_quantile_is_a_value_that_was_measured(q: float, expected: int) -> None:
    assert quantile(range(1, 11), q) == expected


def test_quantile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        quantile([], 0.5)


def test_describe_is_in_seconds() -> None:
    found = describe("burst", [3_000, 1_000, 2_000])
    assert found == {
        "burst.mean": 2e-6,
        "burst.p50": 2e-6,
        "burst.p99": 3e-6,
        "burst.max": 3e-6,
    }


def test_summary_takes_medians_and_pairs_ratios_by_round() -> None:
    summary = summarize(SAMPLES)
    assert summary.values["burst.mean"]["sidestep"] == Spread(3e-6, 2e-6, 4e-6, 3)
    ratio = summary.ratios["burst.mean"]["SummaryWriter"]
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((500, 300, 700))
    assert "empty" not in summary.ratios["burst.mean"]


def test_of_rates_the_higher_is_the_better_and_a_round_of_one_side_only_is_no_pair() -> None:
    ratio = summarize(SAMPLES).ratios["throughput"]["wandb"]
    assert ratio == Spread(60.0, 60.0, 60.0, 1)


def test_a_metric_knows_its_goal() -> None:
    time = Metric("a", "a", "a", goal=1.0)
    rate = Metric("b.c", "b", "b", "/s", goal=1.0, higher_is_better=True)
    assert (time.reached(0.5), time.reached(2.0)) == (True, False)
    assert (rate.reached(0.5), rate.reached(2.0)) == (False, True)
    assert Metric("a", "a", "a").reached(1.0) is None
    assert rate.row == "b"


# --- the comparison with a baseline


def spreads(low: float, median: float, high: float) -> dict[str, dict[str, Spread]]:
    return {"burst.mean": {"wandb": Spread(median, low, high, 3)}}


def test_a_ratio_is_lost_only_beyond_the_noise_of_both_runs() -> None:
    before = spreads(90, 100, 110)
    assert lost_ratios(spreads(80, 89, 95), before) == []
    assert lost_ratios(spreads(40, 45, 50), before) == []
    (lost,) = lost_ratios(spreads(20, 30, 40), before)
    assert "burst.mean against wandb: 30×" in lost
    assert lost_ratios({}, before) == []


def test_one_round_or_the_worst_call_loses_no_ratio() -> None:
    once = {"burst.mean": {"wandb": Spread(1.0, 1.0, 1.0, 1)}}
    assert lost_ratios(once, spreads(90, 100, 110)) == []
    worst = [{"burst.max": spreads(n, n, n)["burst.mean"]} for n in (1, 100)]
    assert lost_ratios(*worst) == []


def test_a_report_can_be_stored_and_compared() -> None:
    summary = summarize(SAMPLES)
    stored = json.loads(json.dumps(as_json(summary, {"cpu": "x"}, [], quick=False)))
    assert stored_ratios(stored) == summary.ratios
    assert lost_ratios(summary.ratios, stored_ratios(stored)) == []


@pytest.mark.parametrize("text", ["[]", "{}", '{"ratios": {"a": {"b": 1}}}', "nonsense"])
def test_a_baseline_that_is_none_is_wrong_usage(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        command.parse(["--check", str(path)])
    assert stopped.value.code == 2
    assert "--check" in capsys.readouterr().err


# --- tables


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (3.214e-6, "s", "3.21 µs"),
        (0.0, "s", "0 ns"),
        (2.0, "s", "2.00 s"),
        (123.4, "s", "123 s"),
        (4.8e6, "/s", "4.80 M/s"),
        (9_000, "/s", "9.00 k/s"),
        (150.2, "MB", "150 MB"),
    ],
)
def test_values_are_shown_with_three_digits(value: float, unit: str, text: str) -> None:
    assert show(value, unit) == text


def test_a_spread_is_shown_in_one_unit() -> None:
    assert show_spread(Spread(1.2e-3, 9e-4, 2e-3, 3), "s") == "1.20 ms (0.900–2.00)"
    assert show_spread(Spread(150.0, 150.0, 150.0, 1), "MB") == "150 MB"


def test_a_table_is_markdown_and_aligned() -> None:
    lines = table([["a", "bb"], ["ccc", ""]]).splitlines()
    assert lines == ["| a   | bb |", "|-----|----|", "| ccc |    |"]


def test_the_report_shows_goals_ratios_and_failures() -> None:
    text = render(summarize(SAMPLES), {"cpu": "some model"}, ["burst, wandb, round 1: no"])
    assert "some model" in text
    assert "≤ 4.00 µs: reached" in text
    assert "500× (300–700), goal 400×: reached" in text
    assert "burst, wandb, round 1: no" in text


def test_the_report_of_nothing_is_no_error() -> None:
    assert "nothing" in render(summarize({}), {})


# --- readers and checks


def test_events_are_split_wherever_the_data_ends() -> None:
    data = framed(b"one", b"", b"three")
    for cut in range(len(data) + 1):
        events, rest = split_events(data[:cut])
        assert framed(*events) + rest == data[:cut]
    assert split_events(data) == ([b"one", b"", b"three"], b"")


def test_a_growing_file_is_followed(tmp_path: Path) -> None:
    path, data = tmp_path / "events", framed(b"one", b"two")
    path.write_bytes(data[:-5])
    tail = EventTail(path)
    assert tail.read() == [b"one"]
    assert tail.read() == []
    path.write_bytes(data)
    assert tail.read() == [b"two"]


def test_wandb_records_that_cross_a_block_are_joined() -> None:
    block, header = 1 << 15, b":W&B\0\0\0"
    first = block - len(header) - 7
    data = header + struct.pack("<IHB", 0, first, 2) + b"x" * first
    data += struct.pack("<IHB", 0, 3, 4) + b"end" + struct.pack("<IHB", 0, 2, 1) + b"ok"
    assert list(split_wandb(data)) == [b"x" * first + b"end", b"ok"]


def test_what_was_logged_must_be_there_once_and_as_it_was() -> None:
    pool = number_pool(width=2)
    whole = [(step, tag, pool[step % 2][tag]) for step in range(3) for tag in pool[0]]
    assert check_scalars([*whole, (7, "system/cpu_percent", 1.0)], pool, 3) == 3 * NUMBERS
    with pytest.raises(MissingDataError, match="1 of 3 steps"):
        check_scalars(whole[1:], pool, 3)
    with pytest.raises(MissingDataError, match="twice"):
        check_scalars([*whole, whole[0]], pool, 3)
    with pytest.raises(MissingDataError, match="not what was logged"):
        check_scalars([(0, whole[0][1], 0.25), *whole[1:]], pool, 3)
    with pytest.raises(MissingDataError, match="only 2 steps"):
        check_scalars(whole, pool, 2)


# --- the plan


def test_every_metric_has_a_workload_and_every_goal_a_metric() -> None:
    keys = [metric.key for metric in METRICS]
    assert len(keys) == len(set(keys))
    assert {metric.workload for metric in METRICS} == set(WORKLOADS)
    assert {key for key, _ in RATIO_GOALS} <= set(keys)
    for workload in WORKLOADS.values():
        assert set(workload.sizes) <= set(ALL_SYSTEMS)


def test_rows_choose_metrics_and_rounds_rotate_the_systems() -> None:
    metrics = selected(["open", "burst"])
    assert {metric.row for metric in metrics} == {"open", "burst"}
    found = list(steps(metrics, ["wandb", "sidestep"], 2, quick=True))
    assert [(step.system, step.round) for step in found] == [
        ("sidestep", 0),
        ("wandb", 0),
        ("wandb", 1),
        ("sidestep", 1),
    ]
    assert {step.workload for step in found} == {"burst"}
    assert selected([]) == list(METRICS)


def test_of_an_empty_call_only_calls_are_shown() -> None:
    step = Step("burst", "empty", 0, 1)
    assert {metric.row for metric in METRICS if applies(metric, step)} == {"burst"}


@pytest.mark.parametrize(
    "words",
    [
        ["--rows", "nosuch"],
        ["--systems", "x"],
        ["--rounds", "0"],
        ["--check", "/nowhere"],
        ["--quick", "--check", "/nowhere"],
    ],
)
def test_wrong_usage_is_exit_code_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.parse(words)
    assert stopped.value.code == 2


# --- processes: in one of their own, since a subreaper waits for every child that it has

ORPHAN = """
import subprocess, sys
from tests.bench.harness import TrialError, become_subreaper, wait_for
become_subreaper()
leave = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', {!r}]); sys.exit(3)"
run = lambda left: subprocess.Popen([sys.executable, "-c", leave.format(left)])
code, _ = wait_for(run("pass"), 30, 30)
assert code == 3, code
try:
    wait_for(run("import time; time.sleep(60)"), 30, 0.2)
except TrialError as error:
    assert "left processes" in str(error)
else:
    raise AssertionError("a process that stays was not noticed")
"""


def test_a_trial_is_over_when_its_orphans_are_and_none_survives() -> None:
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", ORPHAN], cwd=root, check=True, timeout=50)

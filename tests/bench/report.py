"""Makes tables (markdown) and the JSON object of what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from tests.bench.metrics import METRICS, RATIO_GOALS, Metric
from tests.bench.more_systems import ALL_SYSTEMS
from tests.bench.summary import FLOOR, OURS, Spread, Summary

_TIME_UNITS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_RATE_UNITS: Final = ((1e6, "M/s"), (1e3, "k/s"), (1.0, "/s"))


def show(value: float, unit: str) -> str:
    """A value with three digits in the unit that suits it: `3.21 µs`, `4.80 M/s`, `150 MB`."""
    scale, name = suitable(value, unit)
    return f"{digits(value / scale)} {name}"


def show_spread(spread: Spread, unit: str) -> str:
    """The median, and the lowest and the highest in the same unit: `3.21 µs (3.05–4.10)`."""
    scale, name = suitable(spread.median, unit)
    text = f"{digits(spread.median / scale)} {name}"
    if spread.rounds > 1:
        text += f" ({digits(spread.low / scale)}–{digits(spread.high / scale)})"
    return text


def suitable(value: float, unit: str) -> tuple[float, str]:
    """The unit in which a value of `unit` has digits before the point, and its size."""
    if unit == "s":
        return next((u for u in _TIME_UNITS if abs(value) >= u[0]), _TIME_UNITS[-1])
    if unit == "/s":
        return next((u for u in _RATE_UNITS if abs(value) >= u[0]), _RATE_UNITS[-1])
    return 1.0, unit


def digits(value: float) -> str:
    """Three digits that count, and never an exponent."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".") if abs(value) >= 1e-4 else f"{value:.1g}"


def render(
    summary: Summary,
    machine: Mapping[str, str],
    errors: Sequence[str] = (),
    metrics: Iterable[Metric] = METRICS,
) -> str:
    """The whole report as markdown."""
    shown = [metric for metric in metrics if metric.key in summary.values]
    columns = [name for name in ALL_SYSTEMS if any(name in summary.values[m.key] for m in shown)]
    parts = [
        "## Machine\n",
        "\n".join(f"- {name}: {text}" for name, text in machine.items()),
        "\n## Measured: median of the rounds (lowest–highest)\n",
        _values(summary, shown, columns) if shown else "nothing",
        "\n## Ratios: how many times better sidestep is, in the same round (lowest–highest)\n",
        _ratios(summary, shown, [name for name in columns if name not in (OURS, FLOOR)]),
        "\n## Notes\n",
        "\n".join(f"- {name}: {ALL_SYSTEMS[name].note}" for name in columns),
    ]
    if errors:
        parts += ["\n## Trials that failed\n", "\n".join(f"- {error}" for error in errors)]
    return "\n".join(parts) + "\n"


def _values(summary: Summary, shown: list[Metric], columns: list[str]) -> str:
    rows = [["row", "what", "goal", *columns]]
    for metric in shown:
        by_system = summary.values[metric.key]
        cells = [_value_cell(by_system.get(name), metric.unit) for name in columns]
        rows.append([metric.row, metric.label, _goal(metric, by_system.get(OURS)), *cells])
    return table(rows)


def _value_cell(spread: Spread | None, unit: str) -> str:
    return "" if spread is None else show_spread(spread, unit)


def _goal(metric: Metric, ours: Spread | None) -> str:
    if metric.goal is None:
        return ""
    text = f"{'≥' if metric.higher_is_better else '≤'} {show(metric.goal, metric.unit)}"
    return text if ours is None else f"{text}: {_yes(metric.reached(ours.median))}"


def _ratios(summary: Summary, shown: list[Metric], peers: list[str]) -> str:
    rows = [["row", "what", *peers]]
    for metric in shown:
        by_peer = summary.ratios.get(metric.key)
        if by_peer:
            cells = [_ratio_cell(metric.key, name, by_peer.get(name)) for name in peers]
            rows.append([metric.row, metric.label, *cells])
    return table(rows) if len(rows) > 1 else "none: sidestep or its peers were not measured"


def _ratio_cell(key: str, peer: str, spread: Spread | None) -> str:
    if spread is None:
        return ""
    text = show_spread(spread, "×").replace(" ×", "×")
    goal = RATIO_GOALS.get((key, peer))
    return text if goal is None else f"{text}, goal {goal:g}×: {_yes(spread.median >= goal)}"


def _yes(reached: bool | None) -> str:
    return "reached" if reached else "missed"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A markdown table that is also aligned for who reads it as text; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def as_json(
    summary: Summary, machine: Mapping[str, str], errors: Sequence[str], *, quick: bool
) -> dict[str, object]:
    """What `--json` writes and `--check` reads."""
    goals = {metric.key: metric.goal for metric in METRICS if metric.goal is not None}
    return {
        "machine": dict(machine),
        "quick": quick,
        "goals": goals,
        "errors": list(errors),
        **summary.as_json(),
    }

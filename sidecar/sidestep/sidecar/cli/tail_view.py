"""Draws the live table from a `TailModel`: one frame of text for a terminal of a given size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from . import wording
from .tail_model import Row, TailModel

_GAP: Final = 2
_VALUE_WIDTH: Final = 12
_RATE_WIDTH: Final = 8
_AGE_WIDTH: Final = 4
_MIN_TREND: Final = 8
_MIN_TAG: Final = 10
_MAX_TREND: Final = 120
_MAX_TROUBLES: Final = 3
_OLD_S: Final = 60.0
"""A value this old, and three of its intervals old, is shown dimmed."""

_STATE_STYLES: Final = {
    "running": "bold green",
    "finished": "bold cyan",
    "ok": "green",
    "idle": "green",
}


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters to draw with: from lowest to highest, what is not finite, what is left out."""

    steps: str = "▁▂▃▄▅▆▇█"
    bad: str = "!"
    ellipsis: str = "…"
    dot: str = "·"


ASCII_GLYPHS: Final = Glyphs(steps="_.-:=+*#", ellipsis="..", dot="-")


def frame(
    model: TailModel, width: int, height: int, now: float, glyphs: Glyphs | None = None
) -> list[Text]:
    """At most `height` lines of at most `width` columns; `now` is in wall-clock seconds."""
    glyphs = glyphs or Glyphs()
    lines = _header(model, width, glyphs)
    if not model.tags:
        lines += [Text(), *_waiting(model)]
        return _fit(lines, width, height, glyphs)
    room = height - len(lines) - 3  # an empty line, the table's head, and a last line
    rows = model.rows(min(model.tags, room), now)
    lines += [Text(), *_table(rows, width, glyphs)]
    hidden = model.tags - len(rows)
    if hidden > 0:
        lines.append(
            Text(
                f"{glyphs.ellipsis} {hidden:,} more: a taller window, or --tags 'train/*'",
                style="dim",
            )
        )
    return _fit(lines, width, height, glyphs)


def sparkline(cells: Sequence[float], width: int, glyphs: Glyphs | None = None) -> str:
    """`cells` as bars between their least and their greatest, the newest at the right."""
    glyphs = glyphs or Glyphs()
    shown = _resample(cells, width)
    finite = [cell for cell in shown if math.isfinite(cell)]
    if not finite:
        return (glyphs.bad * len(shown)).rjust(width)
    low, high = min(finite), max(finite)
    top = len(glyphs.steps) - 1
    scale = high - low
    if not (0 < scale < math.inf):
        bars = [glyphs.steps[top // 2] if math.isfinite(cell) else glyphs.bad for cell in shown]
    else:
        bars = [
            glyphs.steps[round((cell - low) / scale * top)] if math.isfinite(cell) else glyphs.bad
            for cell in shown
        ]
    return "".join(bars).rjust(width)


def _resample(cells: Sequence[float], width: int) -> list[float]:
    if len(cells) <= width:
        return list(cells)
    edges = [index * len(cells) // width for index in range(width + 1)]
    stretches = (cells[start:end] for start, end in pairwise(edges))
    return [sum(stretch) / len(stretch) for stretch in stretches]


# --- the header --------------------------------------------------------------------------------


def _header(model: TailModel, width: int, glyphs: Glyphs) -> list[Text]:
    status = model.run_status()
    name = wording.printable(model.run) if model.run is not None else "any run"
    title = Text("sidestep tail", style="dim")
    title.append(f"  {wording.elide_middle(name, max(10, width // 2), glyphs.ellipsis)}", "bold")
    if model.presence == "there" and model.status:
        state = wording.printable(str(status.get("state") or "waiting"))
        title.append(f"  {state}", _STATE_STYLES.get(state, "bold yellow"))
    steps = [step for step in (status.get("last_step"), model.last_step) if step is not None]
    if steps:
        title.append(f"  step {wording.count(max(steps))}")
    if model.tags:
        title.append(f"  {model.tags:,} tags", "dim")
    if model.missed:
        title.append(f"  {wording.counted(model.missed, 'record')} not shown here", "yellow")
    lines = [title]
    if model.presence != "there":
        lines.append(Text(_ABSENCE[model.presence], style="bold yellow"))
    if alarm := wording.run_alarm(status):
        lines.append(Text(f"ALARM {alarm}", style="bold red"))
    if status:
        lines += _books(status, glyphs)
    return [*lines, *_machine(model.status, width)]


_ABSENCE: Final = {
    "absent": "no daemon just now: waiting for it",
    "silent": "the daemon says nothing (stopped, or overloaded): waiting for it",
}


def _books(status: Mapping[str, Any], glyphs: Glyphs) -> list[Text]:
    """What became of the records, how far behind the sinks are, and a line for each in trouble."""
    records: Mapping[str, Any] = status.get("records") or {}
    line = Text(style="dim")
    for key in ("durable", "held", "dropped", "rejected"):
        many = records.get(key, 0)
        lost = many and key in ("dropped", "rejected")
        line.append(f"{key} {wording.count(many)}", "not dim bold red" if lost else "")
        line.append(f" {glyphs.dot} ")
    troubled: list[Text] = []
    for sink in status.get("sinks") or ():
        if sink.get("error") or sink.get("state") in wording.TROUBLED:
            troubled.append(Text(wording.sink(sink), style="bold yellow"))
        else:
            line.append(f"{wording.sink(sink)} {glyphs.dot} ")
    line.right_crop(3)
    return [line, *troubled[:_MAX_TROUBLES]]


def _machine(status: Mapping[str, Any], width: int) -> list[Text]:
    """The GPUs, side by side as they fit and in no more than two lines; else the host."""
    texts = [wording.gpu(gpu) for gpu in status.get("gpus") or ()]
    if not texts:
        host = wording.host(status.get("host") or {})
        return [Text(host, style="dim")] if host else []
    beside = max(1, (width + 3) // (max(map(cell_len, texts)) + 3))
    lines = ["   ".join(texts[start : start + beside]) for start in range(0, len(texts), beside)]
    if len(lines) > 2:
        lines[1] += f"   (+{len(texts) - 2 * beside})"
    return [Text(line, style="magenta") for line in lines[:2]]


def _waiting(model: TailModel) -> list[Text]:
    """What to expect while there is nothing to show."""
    if model.presence == "absent":
        return [
            Text("Nothing runs yet. This view fills by itself when training starts:"),
            Text("  sidestep run -- python train.py", style="bold"),
        ]
    known = [run for run in model.status.get("runs") or () if run.get("run") != model.run]
    if model.run is None:
        return [Text("Waiting for the first run. It shows here as soon as it logs a number.")]
    lines = [Text("Waiting for its first numbers.")]
    if known and not model.run_status():
        lines.append(Text("There is no such run yet. Those that the daemon knows:"))
        lines += [
            Text(f"  {wording.printable(str(run.get('run')))}  ({run.get('state')})")
            for run in known[-10:]
        ]
    return lines


# --- the table ---------------------------------------------------------------------------------


def _table(rows: Sequence[Row], width: int, glyphs: Glyphs) -> list[Text]:
    tags = [wording.printable(row.tag) for row in rows]
    steps = [wording.count(row.step) for row in rows]
    step_width = max(4, *map(len, steps)) if steps else 4
    room = width - (_VALUE_WIDTH + step_width + _RATE_WIDTH + _AGE_WIDTH + 5 * _GAP)
    tag_width, trend_width = _share(room, max(map(cell_len, tags), default=0))
    gap = " " * _GAP
    head = gap.join(
        [
            "tag".ljust(tag_width),
            "last value".rjust(_VALUE_WIDTH),
            "trend".center(trend_width),
            "step".rjust(step_width),
            "rate".rjust(_RATE_WIDTH),
            "age".rjust(_AGE_WIDTH),
        ]
    )
    lines = [Text(head, style="bold underline")]
    tags = wording.elide_apart(tags, tag_width, glyphs.ellipsis)
    for row, tag, step in zip(rows, tags, steps, strict=True):
        line = _tag(tag, tag_width)
        line.append(gap)
        line.append(
            wording.number(row.value).rjust(_VALUE_WIDTH),
            "bold" if math.isfinite(row.value) else "bold red",
        )
        line.append(gap + sparkline(row.trend, trend_width, glyphs), "cyan")
        line.append(gap + step.rjust(step_width))
        line.append(gap + wording.rate(row.rate).rjust(_RATE_WIDTH), "dim")
        line.append(gap + wording.age(row.age_s).rjust(_AGE_WIDTH), "dim")
        if row.age_s > max(_OLD_S, 3 / row.rate if row.rate > 0 else 0):
            line.stylize("dim")
        lines.append(line)
    return lines


def _share(room: int, longest_tag: int) -> tuple[int, int]:
    """Divide what is left between the tags and their trends."""
    tag = max(_MIN_TAG, min(longest_tag, room * 3 // 5))
    return tag, max(_MIN_TREND, min(room - tag, _MAX_TREND))


def _tag(tag: str, width: int) -> Text:
    """A tag in exactly `width` columns, its group dimmed."""
    tag = set_cell_size(tag, width)  # wide characters take two columns each
    text = Text(tag)
    if "/" in tag:
        text.stylize("dim", 0, tag.rindex("/") + 1)
    return text


def _fit(lines: list[Text], width: int, height: int, glyphs: Glyphs) -> list[Text]:
    fitting = lines[: max(1, height)]
    for line in fitting:
        line.no_wrap = True
        if cell_len(line.plain) > width:
            line.truncate(max(0, width - len(glyphs.ellipsis)))
            line.append(glyphs.ellipsis, "dim")
    return fitting

"""Draws the live table: a model, what of it is looked at, and a size become lines. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from . import wording
from .tail_browse import KEYS, ORDERS, Browser, Entry
from .tail_header import ASCII_GLYPHS, Glyphs, alarmed, header
from .tail_model import Row, TailModel
from .tail_spans import Line, columns, fitted, sized

__all__ = ["ASCII_GLYPHS", "Glyphs", "frame", "sparkline"]

_GAP: Final = "  "
_VALUE_WIDTH: Final = 12
_RATE_WIDTH: Final = 8
_AGE_WIDTH: Final = 4
_MIN_TREND: Final = 8
_MIN_TAG: Final = 10
_MAX_TREND: Final = 120
_OLD_S: Final = 60.0
"""A value this old, and three of its intervals old, is shown dimmed."""

_ALARM_PREFIX: Final = "sidestep/alarm/"
_ALARM_LEVELS: Final = ("OK", "WATCH", "WARN", "COLLAPSED", "NONFINITE")


def frame(
    model: TailModel,
    width: int,
    height: int,
    now: float,
    glyphs: Glyphs | None = None,
    browser: Browser | None = None,
) -> list[Line]:
    """At most `height` lines of at most `width` columns; `now` is in wall-clock seconds.

    Without a browser there is nobody to press keys: no line speaks of them.
    """
    glyphs = glyphs or Glyphs()
    interactive, browser = browser is not None, browser or Browser()
    lines = header(model, width, height, now, glyphs)
    # However much there is to say, half of the window is the table's.
    lines = lines[: max(1, height // 2)]
    room = max(0, height - len(lines) - 1)
    if browser.mode == "help":
        lines += [[], *_help(room)]
    elif not model.tags:
        lines += [[], *_waiting(model)]
    else:
        lines += [[], *_body(model, browser, width, room, now, glyphs, interactive=interactive)]
    return [fitted(line, width, glyphs.ellipsis) for line in lines[: max(1, height)]]


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


# --- instead of the table ------------------------------------------------------------------------


def _help(room: int) -> list[Line]:
    size = max(len(keys) for keys, _ in KEYS)
    lines: list[Line] = [[(keys.ljust(size), "bold"), (f"  {what}", "")] for keys, what in KEYS]
    return [*lines, [], [("any key goes back", "dim")]][: max(1, room)]


def _waiting(model: TailModel) -> list[Line]:
    """What to expect while there is nothing to show."""
    if model.presence == "absent":
        return [
            [("Nothing runs yet. This view fills by itself when training starts:", "")],
            [("  sidestep run -- python train.py", "bold")],
        ]
    known = [run for run in model.status.get("runs") or () if run.get("run") != model.run]
    if model.run is None:
        return [[("Waiting for the first run. It shows here as soon as it logs a number.", "")]]
    lines: list[Line] = [[("Waiting for its first numbers.", "")]]
    if known and not model.run_status():
        lines.append([("There is no such run yet. Those that the daemon knows:", "")])
        lines += [
            [(wording.printable(f"  {run.get('run')}  ({run.get('state')})"), "")]
            for run in known[-10:]
        ]
    return lines


# --- the table -----------------------------------------------------------------------------------


def _body(
    model: TailModel,
    browser: Browser,
    width: int,
    room: int,
    now: float,
    glyphs: Glyphs,
    *,
    interactive: bool,
) -> list[Line]:
    """The table's head, as many entries as fit, and a last line."""
    entries = browser.entries(model)
    # The last line is for keys and for where one is: without either it is not needed.
    needless = not interactive and len(entries) < room
    fits = max(1, room - 1 if needless else room - 2)
    top, shown = browser.window(entries, fits)
    rows: dict[str, Row] = {}
    for entry in shown:
        if not entry.many:
            for tag in _tags_of(entry):
                if (row := _row(model, browser, tag, now)) is not None:
                    rows[tag] = row
    shown = [entry for entry in shown if entry.many or entry.key in rows]
    layout = _Layout.of(shown, rows, width)
    lines = [layout.head()]
    styles = alarmed(model.run_status())
    names = _names(shown, layout.tag, glyphs)
    for entry, name in zip(shown, names, strict=True):
        if entry.many:
            line = _group(entry, glyphs)
        else:
            line = layout.line(entry, name, rows, _tag_style(entry.key, styles), glyphs)
        if entry.key == browser.cursor:
            line = [(text, f"{style} reverse") for text, style in line]
        lines.append(line)
    if not entries:
        lines.append([("No tag has that in it.", "")])
    beyond = len(entries) - top - len(shown)
    lines += [[]] * (room - len(lines) - 1) if interactive else []
    last = _last(model, browser, top, len(shown), len(entries), beyond, glyphs, interactive)
    return [*lines, last] if last else lines


def _tags_of(entry: Entry) -> list[str]:
    ends = ("_std", "_min", "_max", "_ranks") if entry.spread else ()
    return [entry.key, *(entry.key + end for end in ends)]


def _row(model: TailModel, browser: Browser, tag: str, now: float) -> Row | None:
    if browser.frozen is not None:
        return browser.frozen.row(tag) if tag in browser.frozen else None
    return model.row(tag, now) if model.last(tag) is not None else None


def _last(
    model: TailModel,
    browser: Browser,
    top: int,
    shown: int,
    total: int,
    beyond: int,
    glyphs: Glyphs,
    interactive: bool,
) -> Line:
    """Where one is in the list, and which keys there are."""
    if browser.mode == "typing":
        return [("filter: /", "bold"), (wording.printable(browser.filter), ""), (" ", "reverse")]
    line: Line = []
    if browser.frozen is not None:
        line.append(("PAUSED", "bold reverse"))
        line.append(("  ", ""))
    if browser.filter:
        line.append((f"/{wording.printable(browser.filter)}  ", "bold"))
    if browser.order:
        line.append((f"by {ORDERS[browser.order]}  ", "bold"))
    left_out = model.tags - len(model.names())
    if beyond > 0 or top > 0:
        where = f"{glyphs.ellipsis} lines {top + 1:,}-{top + shown:,} of {total:,}"
        line.append((f"{where}  ", "dim"))
    if left_out > 0:
        line.append((f"{left_out:,} tags too many  ", "yellow"))
    if interactive:
        line.append(("/ filter  space pause  n p runs  ? help  q quit", "dim"))
    return line


def _group(entry: Entry, glyphs: Glyphs) -> Line:
    sign = glyphs.shut if entry.folded else glyphs.open
    return [
        (f"{sign} {wording.printable(entry.key)}", "bold"),
        (f"  {wording.counted(entry.many, 'tag')}", "dim"),
    ]


def _names(shown: Sequence[Entry], width: int, glyphs: Glyphs) -> list[str]:
    """Each entry's name, in so many columns, different where the tags are."""
    whole = [
        f"  {wording.printable(entry.key.removeprefix(entry.group))}"
        if entry.group and not entry.many
        else wording.printable(entry.key)
        for entry in shown
    ]
    tags = [name for name, entry in zip(whole, shown, strict=True) if not entry.many]
    short = iter(wording.elide_apart(tags, width, glyphs.ellipsis))
    return [name if entry.many else next(short) for name, entry in zip(whole, shown, strict=True)]


def _tag_style(tag: str, styles: Mapping[str, str]) -> str:
    """A tag that belongs to a representation which is not well looks like its alarm."""
    plain = tag.removeprefix(_ALARM_PREFIX)
    if plain in styles:
        return styles[plain]
    return next((style for base, style in styles.items() if tag.startswith(base + "_")), "")


@dataclass(frozen=True, slots=True)
class _Layout:
    """The columns' widths; a column without room is 0 wide and not there."""

    tag: int
    trend: int
    step: int
    rate: int
    age: int

    @classmethod
    def of(cls, shown: Sequence[Entry], rows: Mapping[str, Row], width: int) -> _Layout:
        steps = [len(wording.count(row.step)) for row in rows.values()]
        step, rate, age = max([4, *steps]), _RATE_WIDTH, _AGE_WIDTH
        gap = len(_GAP)
        least = _MIN_TAG + _VALUE_WIDTH + gap
        if width < least + step + rate + age + _MIN_TREND + 4 * gap:
            rate = 0
        if width < least + step + age + _MIN_TREND + 3 * gap:
            step = 0
        if width < least + age + gap:
            age = 0
        taken = sum(column + gap for column in (step, rate, age) if column)
        room = max(0, width - _VALUE_WIDTH - gap - taken)
        longest = max(
            (
                columns(wording.printable(e.key.removeprefix(e.group))) + 2 * bool(e.group)
                for e in shown
                if not e.many
            ),
            default=0,
        )
        if room < _MIN_TAG + gap + _MIN_TREND:
            return cls(room, 0, step, rate, age)
        tag = max(_MIN_TAG, min(longest, (room - gap) * 3 // 5))
        return cls(tag, min(room - gap - tag, _MAX_TREND), step, rate, age)

    def head(self) -> Line:
        """The columns' names."""
        names = [sized("tag", self.tag), "last value".rjust(_VALUE_WIDTH)]
        names += ["trend".center(self.trend)] if self.trend else []
        names += [
            name.rjust(size)
            for name, size in (("step", self.step), ("rate", self.rate), ("age", self.age))
            if size
        ]
        return [(_GAP.join(names), "bold underline")]

    def line(
        self, entry: Entry, name: str, rows: Mapping[str, Row], style: str, glyphs: Glyphs
    ) -> Line:
        """One tag."""
        row = rows[entry.key]
        old = row.age_s > max(_OLD_S, 3 / row.rate if row.rate > 0 else 0)
        faint = "dim" if old else ""
        value_style = "bold" if math.isfinite(row.value) else "bold red"
        line: Line = [
            (sized(name, self.tag), style or faint),
            (_GAP, ""),
            (_value(entry.key, row.value).rjust(_VALUE_WIDTH), faint or value_style),
        ]
        if self.trend:
            spread = _spread(entry, rows, self.trend, glyphs)
            trend = self.trend - columns(spread) - bool(spread)
            if spread:
                line.append((f"{_GAP}{spread} ", faint))
            else:
                line.append((_GAP, ""))
            line.append((sparkline(row.trend, trend, glyphs) if trend > 0 else "", "cyan"))
        for text, size in (
            (wording.count(row.step), self.step),
            (wording.rate(row.rate), self.rate),
            (wording.age(row.age_s), self.age),
        ):
            if size:
                line.append((_GAP + text.rjust(size), "dim" if old or size != self.step else ""))
        return line


def _value(tag: str, value: float) -> str:
    if tag.startswith(_ALARM_PREFIX) and value in range(len(_ALARM_LEVELS)):
        return _ALARM_LEVELS[int(value)]
    return wording.number(value)


def _spread(entry: Entry, rows: Mapping[str, Row], room: int, glyphs: Glyphs) -> str:
    """`± 0.01 [0.4 … 0.6]` of a tag's ranks, as much of it as fits beside a trend."""
    found = [rows.get(entry.key + end) for end in ("_std", "_min", "_max")]
    if not entry.spread or None in found:
        return ""
    std, low, high = (f"{row.value:.3g}" for row in found if row is not None)
    short = f"{glyphs.plus_minus} {std}"
    text = f"{short} [{low} {glyphs.ellipsis} {high}]"
    ranks = rows.get(entry.key + "_ranks")
    if ranks is not None and ranks.step == rows[entry.key].step:
        text += f" {ranks.value:.0f} ranks"
    for each in (text, short):
        if columns(each) + 1 <= room:
            return each
    return ""

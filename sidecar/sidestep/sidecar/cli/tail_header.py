"""What stands above the table of `tail`: the run, its alarms, its records and sinks, the GPUs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from . import wording
from .tail_model import TailModel
from .tail_spans import Line, Span, columns, sized, width_of

_MAX_TROUBLES: Final = 3
_MAX_ALARMS: Final = 3
_GPU_LINES: Final = 2
_MANY_GPU_LINES: Final = 8
_TALL: Final = 40
_BAR: Final = 12
_SHORT_BAR: Final = 6

_STATE_STYLES: Final = {
    "running": "bold green",
    "finished": "bold cyan",
    "ok": "green",
    "idle": "green",
}
ALARM_STYLES: Final = {
    "WATCH": "yellow",
    "WARN": "bold yellow",
    "COLLAPSED": "bold red",
    "NONFINITE": "bold red",
}


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters to draw with: from lowest to highest, what is not finite, what is left out."""

    steps: str = "▁▂▃▄▅▆▇█"
    bad: str = "!"
    ellipsis: str = "…"
    dot: str = "·"
    bar: str = "█"
    bar_parts: str = "▏▎▍▌▋▊▉"
    bar_ends: tuple[str, str] = ("▕", "▏")
    open: str = "▾"
    shut: str = "▸"
    plus_minus: str = "±"


ASCII_GLYPHS: Final = Glyphs(
    "_.-:=+*#", "!", "..", "-", "#", "", ("[", "]"), open="-", shut="+", plus_minus="+-"
)


def header(model: TailModel, width: int, height: int, now: float, glyphs: Glyphs) -> list[Line]:
    """The lines above the table, the most important first."""
    status = model.run_status()
    lines = [_title(model, status, width, now, glyphs)]
    if model.presence != "there":
        lines.append([(_ABSENCE[model.presence], "bold yellow")])
    lines += _alarms(status)
    if line := _straggler(status):
        lines.append(line)
    if status:
        lines += _books(status, glyphs)
    return [*lines, *_machine(model.status, width, height, glyphs)]


_ABSENCE: Final = {
    "absent": "no daemon just now: waiting for it",
    "silent": "the daemon says nothing (stopped, or overloaded): waiting for it",
}


def _title(
    model: TailModel, status: Mapping[str, Any], width: int, now: float, glyphs: Glyphs
) -> Line:
    """As much as fits: the name and the state before all, the step before the number of tags."""
    name = wording.printable(model.run) if model.run is not None else "any run"
    line: Line = [
        ("sidestep tail", "dim"),
        (f"  {wording.elide_middle(name, max(10, width // 2), glyphs.ellipsis)}", "bold"),
    ]
    runs = model.runs()
    parts: list[Span] = []
    if model.presence == "there" and model.status:
        state = wording.printable(str(status.get("state") or "waiting"))
        parts.append((f"  {state}", _STATE_STYLES.get(state, "bold yellow")))
    parts += _progress(model, status, now)
    if model.missed:
        parts.append((f"  {wording.counted(model.missed, 'record')} not shown here", "yellow"))
    if len(runs) > 1 and model.run in runs:
        parts.append((f"  run {runs.index(model.run) + 1} of {len(runs)}", "dim"))
    ranks = status.get("ranks")
    if isinstance(ranks, list) and len(cast("list[object]", ranks)) > 1:
        parts.append((f"  {len(cast('list[object]', ranks)):,} ranks", "dim"))
    if model.tags:
        parts.append((f"  {wording.counted(model.tags, 'tag')}", "dim"))
    room = width - width_of(line)
    for text, style in parts:
        if columns(text) <= room:
            line.append((text, style))
            room -= columns(text)
    return line


def _progress(model: TailModel, status: Mapping[str, Any], now: float) -> list[Span]:
    """The step, of how many, how many a second, and how long it will take."""
    steps = [step for step in (status.get("last_step"), model.last_step) if isinstance(step, int)]
    if not steps:
        return []
    step, total = max(steps), status.get("total_steps")
    running = status.get("state") == "running" and model.presence == "there"
    rate = model.step_rate(now) if running else 0.0
    known = isinstance(total, int) and total >= step
    parts: list[Span] = [(f"  step {wording.count(step)}", "")]
    if known:
        parts[0] = (f"  step {wording.count(step)} of {wording.count(total)}", "")
    left_s = (cast("int", total) - step) / rate if known and rate > 0 else math.inf
    if known and 0 < left_s < 1e9:
        parts.append((f"  {wording.duration(left_s)} left", "bold"))
    if rate > 0:
        parts.append((f"  {_pace(rate)}", "dim"))
    return parts


def _pace(rate: float) -> str:
    return f"{1 / rate:.3g} s/step" if rate < 0.1 else f"{rate:.3g} steps/s"


def _alarms(status: Mapping[str, Any]) -> list[Line]:
    """The worst in words, and the others by their names."""
    worst = wording.run_alarm(status)
    if not worst:
        return []
    state = status.get("alarm")
    name = str(state.get("state") if isinstance(state, Mapping) else state)
    lines: list[Line] = [[(f"ALARM {worst}", ALARM_STYLES.get(name, "bold red"))]]
    down = [
        each
        for each in status.get("alarms") or ()
        if isinstance(each, Mapping) and each.get("state") in ALARM_STYLES
    ]
    if len(down) > 1:
        line: Line = []
        for each in down[:_MAX_ALARMS]:
            text = f"{each['state']} {wording.printable(str(each.get('tag')))}"
            line += [(text, ALARM_STYLES[each["state"]]), ("   ", "")]
        if len(down) > _MAX_ALARMS:
            line.append((f"and {len(down) - _MAX_ALARMS} more", "dim"))
        lines.append(line)
    return lines


def alarmed(status: Mapping[str, Any]) -> dict[str, str]:
    """How the tags of representations that are not well look, by the representation."""
    return {
        str(each.get("tag")): ALARM_STYLES[each["state"]]
        for each in status.get("alarms") or ()
        if isinstance(each, Mapping) and each.get("state") in ALARM_STYLES
    }


def _straggler(status: Mapping[str, Any]) -> Line:
    """Which rank the others wait for, if the daemon names one."""
    found = status.get("straggler")
    if not isinstance(found, Mapping) or found.get("rank") is None:
        return []
    host = f" on {found['host']}" if found.get("host") else ""
    why = found.get("reason") or "is slower than the others"
    return [(wording.printable(f"rank {found['rank']}{host} {why}"), "yellow")]


def _books(status: Mapping[str, Any], glyphs: Glyphs) -> list[Line]:
    """What became of the records, how far behind the sinks are, and a line for each in trouble."""
    records: Mapping[str, Any] = status.get("records") or {}
    between = f" {glyphs.dot} "
    line: Line = []
    for key in ("durable", "held", "dropped", "rejected"):
        many = records.get(key, 0)
        lost = many and key in ("dropped", "rejected")
        line += [(f"{key} {wording.count(many)}", "bold red" if lost else "dim"), (between, "dim")]
    troubled: list[Line] = []
    for sink in status.get("sinks") or ():
        if sink.get("error") or sink.get("state") in wording.TROUBLED:
            troubled.append([(wording.sink(sink), "bold yellow")])
        else:
            line += [(wording.sink(sink), "dim"), (between, "dim")]
    return [line[:-1], *troubled[:_MAX_TROUBLES]]


# --- GPUs --------------------------------------------------------------------------------------


def _machine(status: Mapping[str, Any], width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """The GPUs with bars, as wide as they fit in a few lines; else the host."""
    gpus: Sequence[Mapping[str, Any]] = status.get("gpus") or ()
    if not gpus:
        host = wording.host(status.get("host") or {})
        return [[(host, "dim")]] if host else []
    most = _MANY_GPU_LINES if height >= _TALL else _GPU_LINES
    for form in (_whole, _short):
        texts = [form(gpu, glyphs) for gpu in gpus]
        size = max(map(columns, texts))
        beside = max(1, (width + 3) // (size + 3))
        if len(gpus) <= beside * most:
            break
    shown = texts[: beside * most]
    left = len(texts) - len(shown)
    lines: list[Line] = [
        [("   ".join(sized(text, size) for text in shown[at : at + beside]), "magenta")]
        for at in range(0, len(shown), beside)
    ]
    if left:
        note = f" (+{left})"
        text = sized(lines[-1][0][0], min(columns(lines[-1][0][0]), width - len(note)))
        lines[-1] = [(text, "magenta"), (note, "magenta")]
    return lines


def _whole(gpu: Mapping[str, Any], glyphs: Glyphs) -> str:
    """`GPU 0 H100 ▕██████▏ 97 %  ▕███   ▏ 61.4/80 GB  612 W  64 °C`, of what is known."""
    values: Mapping[str, Any] = gpu.get("values") or {}
    name = wording.printable(str(gpu.get("name") or "")).removeprefix("NVIDIA ")
    name = wording.elide_middle(name, 20, glyphs.ellipsis)
    text = f"GPU {_index(gpu)} {name}".rstrip()
    utilization, used = _number(values, "utilization"), _number(values, "memory_used_gb")
    total = _number(values, "memory_total_gb")
    if utilization is not None:
        text += f" {bar(utilization / 100, _BAR, glyphs)} {utilization:3.0f} %"
    if used is not None and total:
        text += f"  {bar(used / total, _BAR, glyphs)} {used:.1f}/{total:.0f} GB"
    elif used is not None:
        text += f"  {used:.1f} GB"
    for key, form in (("power_w", "  {:.0f} W"), ("temperature_c", "  {:.0f} °C")):
        value = _number(values, key)
        text += "" if value is None else form.format(value)
    return text


def _short(gpu: Mapping[str, Any], glyphs: Glyphs) -> str:
    values: Mapping[str, Any] = gpu.get("values") or {}
    text = f"GPU {_index(gpu)}"
    utilization, used = _number(values, "utilization"), _number(values, "memory_used_gb")
    if utilization is not None:
        text += f" {bar(utilization / 100, _SHORT_BAR, glyphs)}{utilization:3.0f}%"
    return text if used is None else f"{text} {used:.0f}G"


def _index(gpu: Mapping[str, Any]) -> str:
    return wording.printable(str(gpu.get("index", "?")))


def _number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def bar(share: float, width: int, glyphs: Glyphs) -> str:
    """A bar of `width` columns between its two ends, filled by `share` (0 to 1)."""
    parts = len(glyphs.bar_parts) + 1
    filled, part = divmod(round(max(0.0, min(1.0, share)) * width * parts), parts)
    body = glyphs.bar * filled + (glyphs.bar_parts[part - 1] if part else "")
    return f"{glyphs.bar_ends[0]}{body.ljust(width)}{glyphs.bar_ends[1]}"

"""Numbers, names and states as people read them; no more than text in and text out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

TROUBLED: Final = frozenset({"degraded", "failed", "lost", "unresponsive"})
"""States of daemons, runs and sinks that somebody should look at."""

_NO_ALARM: Final = frozenset({"", "ok", "none", "warmup"})

_GPU_FIGURES: Final = (
    ("utilization", "{:.0f} %"),
    ("memory_used_gb", "{:.1f} GB"),
    ("power_w", "{:.0f} W"),
    ("temperature_c", "{:.0f} °C"),
)
_HOST_FIGURES: Final = (
    ("system/cpu_percent", "cpu {:.0f} %"),
    ("system/memory_used_gb", "memory {:.1f} GB"),
    ("system/memory_percent", "({:.0f} %)"),
)


def printable(text: str) -> str:
    """`text` without anything that a terminal would obey: such characters are spelled out."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def elide_middle(text: str, width: int, ellipsis: str = "…") -> str:
    """`text` in at most `width` characters: both ends tell tags apart, the middle seldom does."""
    if len(text) <= width:
        return text
    kept = width - len(ellipsis)
    if kept <= 0:
        return text[:width]
    head = kept // 2
    return text[:head] + ellipsis + text[len(text) - (kept - head) :]


def elide_apart(texts: Sequence[str], width: int, ellipsis: str = "…") -> list[str]:
    """`texts` in at most `width` characters each, so that those that differ still look different.

    Layers of a network have names that begin and end alike: of such, what they begin with is left
    out, from a few characters on to where they differ.
    """
    short = [elide_middle(text, width, ellipsis) for text in texts]
    alike: dict[str, set[str]] = defaultdict(set)
    for text, shown in zip(texts, short, strict=True):
        alike[shown].add(text)
    return [
        shown
        if len(text) <= width or len(alike[shown]) == 1
        else _from_difference(text, alike[shown], width, ellipsis)
        for text, shown in zip(texts, short, strict=True)
    ]


def _from_difference(text: str, alike: set[str], width: int, ellipsis: str) -> str:
    first, last = min(alike), max(alike)  # what these share, all share
    differ = (index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    shared = next(differ, len(first))
    while shared and text[shared - 1].isdigit():
        shared -= 1  # 12 and 13 differ in a number, not in a digit
    head = width // 3
    if shared > head:
        text = text[:head] + ellipsis + text[shared:]
    return text if len(text) <= width else text[: max(0, width - len(ellipsis))] + ellipsis


def number(value: float) -> str:
    """A value in six significant digits, as narrow as they allow."""
    return f"{value:.6g}"


def count(many: object) -> str:
    """A whole number with thousands set apart; what is no number is a question mark."""
    return f"{many:,}" if isinstance(many, int) else "?"


def counted(many: int, noun: str) -> str:
    """So many of something: `noun` is the singular of a word that takes an s."""
    return f"{count(many)} {noun}{'' if many == 1 else 's'}"


def rate(per_second: float) -> str:
    """Points a second, in three digits."""
    if not math.isfinite(per_second) or per_second <= 0:
        return "-"
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if per_second >= size:
            return f"{per_second / size:.3g}{unit}/s"
    return f"{per_second:.2g}/s" if per_second < 1 else f"{per_second:.3g}/s"


def duration(seconds: float) -> str:
    """A length of time in its one or two largest units."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, whole = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min" if minutes >= 10 or not whole else f"{minutes} min {whole} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def age(seconds: float) -> str:
    """How old something is, in at most four characters."""
    whole = max(0, int(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= 2 * size:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def run_alarm(run: Mapping[str, Any]) -> str:
    """A run's alarm as one line, "" when there is none: the worst, of what fell first.

    Args:
        run: what the daemon's status says of it: `alarm`, a state, and `alarms`, a list of
            `tag`, `state`, `since_step` and `reason`, in the order in which they fell.
    """
    worst = alarm(run.get("alarm"))
    if not worst:
        return ""
    down = [each for each in run.get("alarms") or () if alarm(each)]
    chosen = next((each for each in down if each.get("state") == run.get("alarm")), None)
    if chosen is None:
        return worst
    text = alarm(chosen)
    if down[0] is not chosen:
        text += f" (first {printable(str(down[0].get('tag')))}, {down[0].get('state')})"
    return text if len(down) == 1 else f"{text}; {len(down) - 1} more"


def alarm(state: object) -> str:
    """An alarm as one line, "" when there is none.

    It is null, a state or a sentence, or has `state`, `tag`, `since_step` (or `step`), `reason`.
    """
    if isinstance(state, Mapping):
        name = str(state.get("state") or "")
        if name.lower() in _NO_ALARM:
            return ""
        where = f" {state['tag']}" if state.get("tag") else ""
        step = state.get("since_step", state.get("step"))
        since = f" since step {count(step)}" if step is not None else ""
        why = f": {state['reason']}" if state.get("reason") else ""
        return printable(f"{name}{where}{since}{why}")
    if isinstance(state, list | tuple):
        return "; ".join(text for text in map(alarm, state) if text)
    return "" if state is None or str(state).lower() in _NO_ALARM else printable(str(state))


def sink(state: Mapping[str, Any]) -> str:
    """A sink as `tensorboard ok` or `wandb degraded, 1,200 behind: why`."""
    behind = state.get("lag_records") or 0
    to = f" to {state['address']}" if state.get("address") else ""
    text = f"{state.get('name', '?')}{to} {state.get('state', '?')}"
    if behind:
        text += f", {count(behind)} behind"
    if state.get("dropped"):
        text += f", {count(state['dropped'])} dropped"
    if state.get("retry_in_s"):
        text += f", next try in {duration(state['retry_in_s'])}"
    if state.get("error"):
        text += f": {state['error']}"
    return printable(text)


def gpu(state: Mapping[str, Any]) -> str:
    """A GPU's figures in one line; what could not be read is left out."""
    name = f"GPU {state.get('index', '?')}"
    if state.get("name"):
        name += f" {state['name']}"
    return printable("  ".join([name, *_figures(state.get("values") or {}, _GPU_FIGURES)]))


def host(state: Mapping[str, Any]) -> str:
    """The host's figures in one line, "" when nothing is known."""
    return printable("  ".join(_figures(state, _HOST_FIGURES)))


def refused(counts: object) -> str:
    """What the daemon refused of its peers, in a line; "" when there is nothing.

    Args:
        counts: `frames`, `records` and `clients`, each by why; `quarantine`, where samples are.
    """
    if not isinstance(counts, Mapping):
        return ""
    parts: list[str] = []
    for what in ("frames", "records", "clients"):
        by_why = counts.get(what)
        if isinstance(by_why, Mapping):
            parts += [f"{count(many)} {what} ({why})" for why, many in by_why.items()]
    if not parts:
        return ""
    text = f"refused since the daemon began: {', '.join(parts)}"
    if counts.get("samples"):
        text += f". Samples are in {counts.get('quarantine')}"
    return printable(text)


def _figures(state: Mapping[str, Any], wanted: tuple[tuple[str, str], ...]) -> list[str]:
    texts: list[str] = []
    for key, form in wanted:
        value = state.get(key)
        if not isinstance(value, int | float):
            continue
        text = form.format(value)
        total = state.get(key.replace("_used_", "_total_"))
        if "_used_" in key and isinstance(total, int | float):
            text = text.removesuffix(" GB") + f"/{total:.0f} GB"
        texts.append(text)
    return texts

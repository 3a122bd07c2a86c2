"""Judges curves by their points alone: flat, on one step, not a number, going back, standing still.

Pure: points in, findings out. What is normal must stay silent: a learning rate that is constant, a
metric that is logged once an epoch, a run that has only just begun.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from operator import eq
from statistics import median
from typing import Final

from .. import wording
from .event_tail import Point, Tail
from .finding import Finding, note, ok, warning, wrong

_MANY: Final = 20
"""Points that are alike before anybody calls that flat."""

_FEW: Final = 5
"""Points that are no numbers."""

_STILL_INTERVALS: Final = 20
_STILL_S: Final = 30.0
"""A curve stands still after so many of its usual intervals, and so many seconds."""

_SHOWN: Final = 3

_SCHEDULED: Final = re.compile(
    r"(^|[/_.-])(lr|learning_rate|epoch|step|momentum|beta\d*|weight_decay|wd|ema|tau|temperature|"
    r"scale|schedule|warmup|batch_size|world_size)([/_.-]|\d*$)|_n_\w+$|_nonfinite$|_dead_fraction$",
    re.IGNORECASE,
)
"""Names of what is set or counted, not measured: it may well be constant."""


def judge(run: str, tail: Tail, *, alive: bool, now_s: float, process: int = 0) -> list[Finding]:
    """What is to be said of the curves of a run.

    Args:
        run: its name.
        tail: the end of its event files.
        alive: whether a trainer of it lives: a run that is over may stand still.
        now_s: seconds since the epoch.
        process: the trainer's process id, 0 when unknown.
    """
    curves = {tag: points for tag, points in tail.own.items() if points}
    if not curves:
        return list(_hidden(run, tail))
    found = [
        *_one_step(run, curves),
        *_went_back(run, tail),
        *_no_numbers(run, curves),
        *_constant(run, curves),
    ]
    if alive:
        found += _stands_still(run, curves, now_s, process)
    if not found:
        points = sum(len(points) for points in curves.values())
        some = "newest " if tail.windowed else ""
        found = [
            ok(
                "curves",
                f"{run}: {wording.counted(len(curves), 'curve')} move in their {some}"
                f"{wording.counted(points, 'point')}",
                run=run,
            )
        ]
    return found


def _hidden(run: str, tail: Tail) -> Iterator[Finding]:
    if tail.hidden and (not tail.windowed or tail.hidden_from == 0):
        yield wrong(
            "curves.hidden",
            f"{run}: TensorBoard hides all its {wording.counted(tail.hidden, 'point')}: a later "
            f"attempt began again at step {tail.hidden_from} (purge_step) and has logged nothing "
            "since. They are still in the file and in the archive",
            f"sidestep export {quoted(run)} --format csv",
            complaint="nothing",
            run=run,
        )


def _one_step(run: str, curves: Mapping[str, Sequence[Point]]) -> Iterator[Finding]:
    stuck = {
        tag: points[-1][0]
        for tag, points in curves.items()
        if len(points) >= _MANY and len({step for step, _, _ in points[-_MANY:]}) == 1
    }
    if stuck:
        step = next(iter(stuck.values()))
        yield warning(
            "curves.step",
            f"{run}: the step does not advance: the last {_MANY} points and more of "
            f"{_names(stuck)} are all at step {step}, one above the other. Pass the global step to "
            "`emit(values, step=...)`, or leave it out and it counts by itself",
            'grep -rnE "emit\\(|add_scalar|log_metrics" --include="*.py" .',
            complaint="flat",
            run=run,
        )


def _went_back(run: str, tail: Tail) -> Iterator[Finding]:
    for tag, (times, before, after) in tail.back.items():
        yield warning(
            "curves.back",
            f"{run}: steps went back, of {_names(tail.back)}: {wording.count(before)} was followed "
            f"by {wording.count(after)} ({wording.counted(times, 'time')} in {tag}). TensorBoard "
            "draws such a curve over itself, and it seems to stop. A step that begins anew in each "
            "epoch must be the global one",
            'grep -rnE "emit\\(|add_scalar|log_metrics" --include="*.py" .',
            complaint="stops",
            run=run,
        )
        return


def _no_numbers(run: str, curves: Mapping[str, Sequence[Point]]) -> Iterator[Finding]:
    since = {
        tag: points[_first_alike(points, _is_no_number)][0]
        for tag, points in curves.items()
        if len(points) - _first_alike(points, _is_no_number) >= _FEW
    }
    if since:
        yield warning(
            "curves.nan",
            f"{run}: {_names(since)} is no number since step {wording.count(min(since.values()))} "
            "(NaN or infinite), of which TensorBoard draws no line",
            f"sidestep tail {quoted(run)}",
            complaint="stops",
            run=run,
        )


def _constant(run: str, curves: Mapping[str, Sequence[Point]]) -> Iterator[Finding]:
    measured = {
        tag: points
        for tag, points in curves.items()
        if len(points) >= _MANY and not _SCHEDULED.search(tag)
    }
    since: dict[str, int] = {}
    for tag, points in measured.items():
        last = points[-1][2]
        if math.isnan(last):
            continue
        first = _first_alike(points, partial(eq, last))
        steps = {step for step, _, _ in points[first:]}
        if len(points) - first >= _MANY and len(steps) > 1:
            since[tag] = points[first][0]
    if not since:
        return
    bad = len(since) == len(measured) or any("loss" in tag.lower() for tag in since)
    tag = min(since, key=lambda tag: ("loss" not in tag.lower(), tag))
    value = wording.number(curves[tag][-1][2])
    say = warning if bad else note
    names, have = _names({tag: 0, **since}), "has" if len(since) == 1 else "have"
    yield say(
        "curves.constant",
        f"{run}: {names} {have} not changed since step {wording.count(since[tag])}: "
        f"every value of {tag} is {value}. The curve is drawn as it was emitted",
        f"sidestep tail {quoted(run)} --history 5",
        complaint="flat",
        run=run,
    )


def _stands_still(
    run: str, curves: Mapping[str, Sequence[Point]], now_s: float, process: int
) -> Iterator[Finding]:
    times = sorted(point[1] for points in curves.values() for point in points[-200:])
    newest = times[-1]
    distinct = [b - a for a, b in pairwise(times) if b > a]
    if not distinct:
        return
    usual = median(distinct)
    still_s = now_s - newest
    if still_s > max(_STILL_S, _STILL_INTERVALS * usual, 3 * max(distinct)):
        yield warning(
            "curves.still",
            f"{run}: its trainer lives, and has emitted nothing for {wording.duration(still_s)}; "
            f"before, something came every {_pace(usual)}",
            f"py-spy dump --pid {process}" if process else f"sidestep tail {quoted(run)}",
            complaint="stops",
            run=run,
        )


def _first_alike(points: Sequence[Point], is_alike: Callable[[float], bool]) -> int:
    """Where the last points begin whose values are all alike."""
    first = len(points)
    while first and is_alike(points[first - 1][2]):
        first -= 1
    return first


def _is_no_number(value: float) -> bool:
    return not math.isfinite(value)


def _names(tags: Mapping[str, object]) -> str:
    shown = [wording.printable(tag) for tag in list(tags)[:_SHOWN]]
    more = len(tags) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _pace(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else wording.duration(seconds)


def quoted(text: str) -> str:
    """A word of a command line."""
    import shlex

    return shlex.quote(wording.printable(text))

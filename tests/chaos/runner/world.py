"""Plays a plan: trainers and a daemon, faults when they are due, quiet at the end, the verdict."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .faults import cause
from .hostile import HOSTILE
from .plan import Fault, Plan
from .stage import Stage
from .verdict import judge

_STEP_S: Final = 0.02
_CALM_S: Final = 90.0
"""For daemon and trainers to end well, once nothing is wrong any more."""

_DRAIN_S: Final = 180.0
_LEAVE_S: Final = 90.0
_SHORT: Final = 1500

Say = Callable[[str], None]


@dataclass
class Outcome:
    """What came of a plan.

    Attributes:
        wrong: what is not as promised, in sentences; empty when all is well.
        figures: of each run.
        summary: of all trainers together.
    """

    wrong: list[str] = field(default_factory=list)
    figures: dict[str, dict[str, int]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)


def play(plan: Plan, say: Say, keep: Path, *, always: bool = False) -> Outcome:
    """Play `plan`; when something is wrong, or `always`, copy all there is to look at to `keep`."""
    stage = Stage(plan, say)
    outcome = Outcome()
    try:
        try:
            stage.begin()
            _faults(stage, plan, say)
            _calm(stage, plan, say)
            outcome.summary = stage.troupe.summary()
            _verdict(stage, outcome)
        except Exception as error:
            outcome.wrong.append(f"the run broke off: {type(error).__name__}: {_short(str(error))}")
        if outcome.wrong or always:
            keep.mkdir(parents=True, exist_ok=True)
            stage.keep(keep)
    finally:
        stage.close()
    return outcome


def _faults(stage: Stage, plan: Plan, say: Say) -> None:
    """Cause what is due, end what is over, until the time is up."""
    began = time.monotonic()
    order = itertools.count()
    due: list[tuple[float, int, Fault | Callable[[], object]]] = [
        (fault.at_s, next(order), fault) for fault in plan.faults
    ]
    heapq.heapify(due)
    while due:
        now_s = time.monotonic() - began
        while due and due[0][0] <= now_s:
            _, _, action = heapq.heappop(due)
            if not isinstance(action, Fault):
                action()
                continue
            words, undo = cause(stage, action)
            say(f"{time.monotonic() - began:7.2f} s  {action.kind}: {words}")
            if undo is not None:
                heapq.heappush(due, (now_s + action.hold_s, next(order), undo))
        stage.troupe.replace_the_dead()
        stage.see_to_the_daemon()
        time.sleep(_STEP_S)


def _calm(stage: Stage, plan: Plan, say: Say) -> None:
    """Nothing is wrong any more: all trainers end, everything is written."""
    say("        no more faults")
    stage.heal()
    stage.await_daemon(_CALM_S)
    stage.troupe.end(plan.ends, _CALM_S)
    say("        the trainers have ended")
    stage.await_daemon(_CALM_S)
    stage.sandbox.drain(_DRAIN_S)
    say("        drained")


def _verdict(stage: Stage, outcome: Outcome) -> None:
    sandbox = stage.sandbox
    stage.await_daemon(_CALM_S)  # one that a client has started leaves when it has nothing to do
    status = sandbox.status()
    outcome.wrong, outcome.figures = judge(stage.troupe.all, status, sandbox.root)
    if storage := status["daemon"].get("storage_error"):
        outcome.wrong.append(f"the journal cannot be written still: {storage}")
    if outboxes := sandbox.outboxes():
        outcome.wrong.append(f"outboxes are left: {outboxes}")
    for run in status["runs"]:
        for sink in run["sinks"]:
            if sink["error"] or sink["lag_records"] or sink["skipped"]:
                outcome.wrong.append(f"run {run['run']}: sink {sink}")
        if run["clients"] and run["run"] != HOSTILE:
            outcome.wrong.append(f"run {run['run']}: {run['clients']} clients are still there")
    done = sandbox.cli("stop", timeout_s=_LEAVE_S)
    if done.returncode:
        outcome.wrong.append(f"stop: {done.returncode} {done.stdout}{done.stderr}")
    deadline = time.monotonic() + 5.0
    while (left := sandbox.processes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        outcome.wrong.append(f"processes are left: {[p.cmdline() for p in left]}")


def _short(text: str) -> str:
    return text if len(text) < _SHORT else f"{text[: _SHORT // 2]} … {text[-_SHORT // 2 :]}"

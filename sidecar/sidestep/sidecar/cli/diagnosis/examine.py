"""Gathers the facts, has each area judge them, and puts it all in order; nothing here can hang."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sidestep.proto import SidestepError
from sidestep.proto.paths import RuntimePaths, state_dir

from ..common import environment_paths
from . import (
    clock,
    daemon,
    facts,
    gpus,
    install,
    machine,
    memory,
    places,
    settings,
    sinks,
    tensorboard,
    trainers,
    wandb_runs,
)
from .finding import Finding, Level, warning
from .isolate import Outcome, run_all, tell
from .scene import Scene, is_within, merge_runs

_STALL_S: Final = 1.6
"""A piece that needs no CPU and says nothing for so long hangs: the whole is to take 3 s."""

_ASKING_STALL_S: Final = 2.0
"""A little more than the daemon has for its answer."""

_MOST_S: Final = 20.0
"""On a machine that is busy, what moves is waited for."""

Check = Callable[[Scene], Iterable[Finding]]

AREAS: Final[Mapping[str, tuple[Check, ...]]] = {
    "Installation": (install.check,),
    "Daemon": (daemon.check,),
    "Settings": (settings.check,),
    "Directories": (places.runtime, places.state, places.shared_memory, places.logs),
    "Trainers": (trainers.check,),
    "Sinks": (sinks.check,),
    "TensorBoard": (tensorboard.check, tensorboard.files),
    "W&B": (wandb_runs.check,),
    "GPUs": (gpus.check,),
    "Memory": (memory.check,),
    "Clock": (clock.check,),
}
"""In the order in which they are shown: what comes first explains what comes later."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.

    Attributes:
        areas: the findings of each area, in the order in which they are shown.
        daemon: `pid`, `version`, `state_dir` of the daemon; None without one.
        took_s: seconds that it took.
    """

    areas: Mapping[str, list[Finding]]
    daemon: Mapping[str, Any] | None
    took_s: float

    @property
    def findings(self) -> list[Finding]:
        """All of them."""
        return [finding for found in self.areas.values() for finding in found]

    def count(self, level: Level) -> int:
        """How many are of this level."""
        return sum(finding.level is level for finding in self.findings)


def examine(
    environ: Mapping[str, str], cwd: str, *, logdir: str | None = None, run: str | None = None
) -> Report:
    """Walk the whole chain.

    Args:
        environ: the environment.
        cwd: where relative paths begin.
        logdir: the log directory that is looked into, if not those of the runs.
        run: the one run that is looked at, if not the living and the newest ones.
    """
    began = time.monotonic()
    scene = _gather(environ, cwd, logdir, run)
    pieces = {
        f"{area}/{number}": partial(_judge, check, scene)
        for area, checks in AREAS.items()
        for number, check in enumerate(checks)
    }
    outcomes = run_all(pieces, _STALL_S, _MOST_S)
    areas: dict[str, list[Finding]] = {area: [] for area in AREAS}
    for name, outcome in outcomes.items():
        area = name.partition("/")[0]
        areas[area] += _findings(area, outcome)
    for fact in ("trainers", "processes", "journal", "strangers"):
        if problem := scene.problems.get(fact):
            areas["Daemon"].append(_failed("Daemon", f"{_FACTS[fact]}: {problem}"))
    known = {key: scene.daemon.get(key) for key in ("pid", "version", "state_dir", "endpoint")}
    return Report(areas, known if scene.lives else None, time.monotonic() - began)


_FACTS: Final = {
    "trainers": "the trainers' outboxes",
    "processes": "this machine's processes",
    "journal": "the journal",
    "strangers": "outboxes of other runtime directories",
}


def _gather(environ: Mapping[str, str], cwd: str, logdir: str | None, run: str | None) -> Scene:
    problems: dict[str, str] = {}
    paths: RuntimePaths | None = None
    paths_problem = ""
    try:
        paths = environment_paths()
    except SidestepError as error:
        paths_problem = str(error)
    own_state = state_dir(environ, os.path.expanduser("~"))
    pieces: dict[str, Callable[[], object]] = {
        "gpus": facts.gpus,
        "processes": facts.processes,
    }
    if paths is not None:
        pieces["daemon"] = partial(facts.daemon, paths)
        pieces["strangers"] = partial(facts.strangers, paths, own_state)
        pieces["state_dir"] = partial(_chosen_state_dir, environ, own_state)
    first = run_all(pieces, _ASKING_STALL_S, _MOST_S)
    told: dict[str, Any] = _value(first, "daemon", {}, problems)
    chosen_state = str(told.get("state_dir") or "") or _value(first, "state_dir", own_state, {})
    lives = bool(told.get("pid") or told.get("problem"))
    second: dict[str, Outcome] = {}
    if paths is not None:
        states = list(dict.fromkeys([chosen_state, own_state]))
        second = run_all(
            {
                "trainers": partial(facts.trainers, paths, states),
                "journal": partial(facts.journal, chosen_state, lives),
            },
            _STALL_S,
            _MOST_S,
        )
    journal: dict[str, Any] = _value(second, "journal", {}, problems)
    runs = merge_runs(told.get("status") or {}, journal.get("runs"))
    looked = os.path.normpath(os.path.join(cwd, os.path.expanduser(logdir))) if logdir else ""
    return Scene(
        environ=machine.of_interest(environ),
        cwd=cwd,
        now=time.time(),
        uid=os.getuid(),
        paths=paths,
        paths_problem=paths_problem,
        state_dir=chosen_state,
        logdir=looked,
        within=_within([run.event_folder for run in runs], looked),
        wanted=run or "",
        daemon=told,
        trainers=_value(second, "trainers", [], problems),
        strangers=_value(first, "strangers", [], problems),
        processes=_value(first, "processes", {}, problems),
        gpus=_value(first, "gpus", {}, problems),
        journal_damage=str(journal.get("damage") or ""),
        runs=runs,
        problems=problems,
    )


def _within(folders: Sequence[str], logdir: str) -> frozenset[str]:
    """Which folders are below `--logdir`; by their names, where links cannot be followed."""
    if not logdir:
        return frozenset()

    def look() -> None:
        for folder in folders:
            if is_within(folder, logdir):
                tell(folder)

    outcome = run_all({"within": look}, _STALL_S, _MOST_S)["within"]
    found = frozenset(str(folder) for folder in outcome.parts)
    if not outcome.problem:
        return found
    return found | {f for f in folders if f.startswith(logdir.rstrip("/") + "/")}


def _chosen_state_dir(environ: Mapping[str, str], otherwise: str) -> str:
    """Where the settings would have a daemon keep its state."""
    from ...config import ConfigurationError, load

    try:
        return os.path.abspath(load(None, environ).state_dir)
    except ConfigurationError:
        return otherwise


def _value(outcomes: Mapping[str, Outcome], name: str, otherwise: Any, problems: Any) -> Any:
    outcome = outcomes.get(name)
    if outcome is None:
        return otherwise
    if outcome.problem:
        problems[name] = outcome.problem
        return otherwise
    return outcome.value


def _judge(check: Check, scene: Scene) -> None:
    for finding in check(scene):
        tell(finding.as_json())  # one by one: what comes next may hang


def _findings(area: str, outcome: Outcome) -> list[Finding]:
    found = [
        Finding(
            **{key: str(value) for key, value in one.items() if key != "level"},
            level=Level(one["level"]),
        )
        for one in outcome.parts
    ]
    return [*found, _failed(area, outcome.problem)] if outcome.problem else found


def _failed(area: str, problem: str) -> Finding:
    """A check that could not be made is no verdict, except that what it looked at hangs."""
    name = area.lower().replace("&", "and")
    hangs = "hangs" in problem
    if not hangs:
        return warning(
            f"{name}.check",
            f"this check could not be made: {problem}. Please report it",
            "sidestep status",
        )
    return Finding(
        f"{name}.check",
        Level.WRONG,
        f"this check was given up: {problem}. A disk or a file server that does not answer?",
        "timeout 10 df -h",
        "stops",
    )

"""`sidestep replay`: recorded statistics through the alarms' rules, to calibrate thresholds."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer

from .. import alarms
from ..alarms import Alarm, Rules, RunAlarms, TracePoint
from ..config import load
from . import wording
from .common import CommandError, environment_paths
from .completion import complete_run
from .control_client import Control
from .export_source import open_source
from .trace_files import read_points


def replay(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|RUN",
            show_default=False,
            autocompletion=complete_run,
            help="What `sidestep export` has written (csv or jsonl; - for stdin), or a run's name.",
        ),
    ],
    rules: Annotated[
        str | None,
        typer.Option(
            "--rules",
            metavar="F",
            show_default=False,
            help="Configuration file whose block `sidecar: alarms:` has the thresholds. "
            "Default: $SIDESTEP_CONFIG, else the defaults.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="JSON lines: each transition, then each last state."),
    ] = False,
    log_dir: Annotated[
        str | None,
        typer.Option("--log-dir", metavar="D", show_default=False, help="The run's log directory."),
    ] = None,
) -> None:
    """What the collapse alarms would have said of a run that is recorded.

    Prints each transition and the last state of each representation. Nothing is written, and
    no alarm is sent. Exit code 0, whatever they say.
    """
    # A file that is named here is meant, whatever the environment says.
    thresholds = load(rules, {} if rules else os.environ).alarms
    runs: dict[str, RunAlarms] = {}
    seen = 0
    for run, tag, observation in alarms.observations(_points(source, log_dir)):
        seen += 1
        alarm = runs.setdefault(run, RunAlarms(thresholds)).observe(tag, observation)
        if alarm is not None:
            print(json.dumps(_transition(run, alarm)) if as_json else _line(run, alarm))
    for run, states in runs.items():
        for each in alarms.details(states.states):
            if as_json:
                print(json.dumps({"event": "state", "run": run, **each}))
            else:
                where = f"{run} {each['tag']}".strip()
                since = wording.count(each["since_step"])
                print(wording.printable(f"{where}: {each['state']} since step {since}"))
    if not seen:
        raise CommandError(
            f"{wording.printable(source)} holds no statistics of a representation (numbers under "
            "T_variance_share, T_pr_images, ...): emit client.Representation"
        )
    _say_what_is_missing(runs, thresholds)


def _say_what_is_missing(runs: dict[str, RunAlarms], rules: Rules) -> None:
    for run, states in runs.items():
        for tag, state in states.states.items():
            if state.state is alarms.State.WARMUP:
                print(
                    wording.printable(
                        f"{run} {tag}: {state.judged} of {state.seen} observations could be judged,"
                        f" more than {rules.warmup_observations} of at least {rules.min_images} "
                        "images are needed"
                    ),
                    file=sys.stderr,
                )


def _points(source: str, log_dir: str | None) -> Iterator[TracePoint]:
    if source == "-" or os.path.isfile(source):
        yield from read_points(source)
        return
    found = open_source(Control(environment_paths()), source, log_dir)
    if found.missing:
        print(wording.printable(f"sidestep: {found.missing}"), file=sys.stderr)
    if found.run is not None:
        yield from _of_run(source, found.run.points())


def _of_run(run: str, points: Iterable[Any]) -> Iterator[TracePoint]:
    for tag, step, wall_time_s, value in points:
        if math.isfinite(value):
            yield TracePoint(run, tag, step, wall_time_s, value)


def _line(run: str, alarm: Alarm) -> str:
    t = alarm.transition
    return wording.printable(
        f"{run} step {t.step:,} {alarm.tag}: {t.previous.value} -> {t.state.value}. {alarm.text()}"
    )


def _transition(run: str, alarm: Alarm) -> dict[str, object]:
    t = alarm.transition
    return {
        "event": "transition",
        "run": run,
        "tag": alarm.tag,
        "step": t.step,
        "previous": t.previous.value,
        "state": t.state.value,
        "since_step": t.since_step,
        "condition": t.condition,
        "reason": t.reason,
        "text": alarm.text(),
    }

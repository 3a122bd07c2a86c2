"""Every sink of every run, whatever it writes to: does it work, keep up, and lose nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .. import wording
from .curves import quoted
from .finding import Finding, ok, warning, wrong
from .scene import RunSeen, Scene

_BEHIND_S: Final = 10.0
"""A sink that is behind and has stored no cursor for so long does not move."""

_DESTINATIONS: Final = {"wandb": "W&B", "tensorboard": "TensorBoard", "archive": "the archive"}

_REMEDIES: Final = (
    (r"no space left|disk is full|disk full|ENOSPC|quota", "du -xh -d 1 {dir} | sort -h | tail"),
    (r"read-only file system", "mount | grep -w ro"),
    (r"symbolic link", "ls -la {dir}"),
    (r"permission denied|cannot be written|not a directory|is a directory|EACCES", "ls -la {dir}"),
    (r"no such file", "mkdir -p {dir}"),
    (r"does not accept the API key|wandb login|\b401\b", "wandb login --relogin"),
    (r"pip install '([^']+)'", "pip install '{match}'"),
    (r"reachable from here", "curl -sSI {wandb}"),
    (r"entity. and .project|\b40[34]\b", "wandb status"),
    (r"unknown setting", "grep -rn 'wandb=' --include='*.py' ."),
)
"""What a sink's sentence says, and the command for that."""


def check(scene: Scene) -> Iterator[Finding]:
    """Look at the sinks of the chosen runs."""
    well: dict[str, int] = {}
    for run in scene.chosen:
        for sink in run.sinks:
            found = list(_of(scene, run, sink))
            yield from found
            if not found:
                well[str(sink["name"])] = well.get(str(sink["name"]), 0) + 1
    yield from _stopped_workers(scene)
    if well:
        text = ", ".join(f"{name} of {wording.counted(n, 'run')}" for name, n in well.items())
        yield ok("sinks", f"working and up to date: {text}")
    elif not any(run.sinks for run in scene.chosen):
        yield ok("sinks", "no run yet, so nothing to write")


def _of(scene: Scene, run: RunSeen, sink: Mapping[str, Any]) -> Iterator[Finding]:
    from ...supervision.wanted import KEEP_WHAT_WAITS

    name = str(sink.get("name"))
    where = _DESTINATIONS.get(name, name)
    lag = int(sink.get("lag_records") or 0)
    if error := sink.get("error"):
        written = max(0, run.records - lag)
        complaint = _complaint(name, never=lag > 0 and written == 0)
        waits = f". {wording.counted(lag, 'record')} wait for it" if lag else ""
        yield wrong(
            f"sinks.{name}",
            f"{run.name}: {where} is {sink.get('state')}: {error}{waits}. It is tried again until "
            "it works",
            _remedy(str(error), run, scene),
            complaint=complaint,
            run=run.name,
        )
    elif lag and name not in KEEP_WHAT_WAITS and not _moves(scene, run, name):
        cursor = run.cursors.get(name) or {}
        since = scene.now - float(cursor.get("changed_s") or scene.now)
        yield warning(
            f"sinks.{name}",
            f"{run.name}: {where} is {wording.counted(lag, 'record')} behind and has written "
            f"nothing for {wording.duration(since)}; the journal holds them meanwhile",
            "sidestep status",
            complaint=_complaint(name),
            run=run.name,
        )
    if many := int(sink.get("dropped") or 0):
        yield warning(
            f"sinks.{name}_dropped",
            f"{run.name}: {where} was not given {wording.counted(many, 'record')}: more waited for "
            "it than may (wandb_backlog_mb), so the oldest were dropped for it alone. They are in "
            "the archive",
            f"sidestep export {quoted(run.name)} --format csv",
            complaint=_complaint(name),
            run=run.name,
        )
    if many := int(sink.get("skipped") or 0):
        yield warning(
            f"sinks.{name}_skipped",
            f"{run.name}: {where} could not show {wording.counted(many, 'value')}, and the "
            "daemon's log says which and why",
            f"grep -i skipped {quoted(scene.paths.log)}" if scene.paths else "sidestep status",
            complaint=_complaint(name, never=True),
            run=run.name,
        )


def _complaint(sink: str, *, never: bool = False) -> str:
    """What somebody would complain of who misses what a sink does not write."""
    of_curves = "nothing" if never else "stops"
    return {"wandb": "wandb", "tensorboard": of_curves}.get(sink, "")


def _moves(scene: Scene, run: RunSeen, sink: str) -> bool:
    """Whether it has stored a cursor a moment ago, or is only just to begin."""
    if not scene.status:
        return True  # without a daemon nothing does; that is said once, for all
    cursor = run.cursors.get(sink)
    return cursor is None or scene.now - float(cursor["changed_s"]) < _BEHIND_S


def _stopped_workers(scene: Scene) -> Iterator[Finding]:
    for worker in scene.processes.get("workers") or ():
        if worker["parent"] == scene.pid and scene.pid and worker["stopped"]:
            pid = worker["pid"]
            yield wrong(
                "sinks.stopped",
                f"the worker of {worker['sink']} (pid {pid}) is stopped (SIGSTOP): the journal "
                "keeps what it does not write. The daemon replaces it after worker_deadline_s",
                f"kill -CONT {pid}",
                complaint="memory",
            )


def _remedy(error: str, run: RunSeen, scene: Scene) -> str:
    url = scene.daemon_environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    for pattern, command in _REMEDIES:
        if found := re.search(pattern, error, re.IGNORECASE):
            match = found[1] if found.groups() else ""
            return command.format(dir=quoted(run.log_dir), wandb=quoted(url), match=match)
    log = scene.paths.log if scene.paths else ""
    return f"tail -n 50 {quoted(log)}"

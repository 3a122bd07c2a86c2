"""TensorBoard: installed, asked for, reading what is written, and what it would show."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final
from urllib.parse import urlparse

from sidestep.proto.paths import DEFAULT_LOG_DIR

from .. import wording
from .curves import judge, quoted
from .event_tail import WINDOW_BYTES, Tail, event_files, read_tail
from .finding import Finding, note, ok, warning, wrong
from .isolate import doing
from .machine import size
from .scene import RunSeen, Scene, is_within

_LEAST_BYTES: Final = 128 << 10
_SETTLE_S: Final = 0.2
"""A record that is being written just now is whole a moment later."""


def check(scene: Scene) -> Iterator[Finding]:
    """Look at TensorBoard itself and at which directories its processes read."""
    yield _installed()
    wanting = [run for run in scene.chosen if run.has_events]
    yield from _logdir(scene, wanting)
    yield from _processes(scene, wanting)
    for run in scene.chosen:
        if run.goes_to:
            host = (urlparse(run.goes_to).hostname or "").strip("*")
            yield note(
                "tensorboard.forwarded",
                f"{run.name}: is passed on to {run.goes_to}, and its event files are there",
                f"ssh {quoted(host)} sidestep doctor" if host else "sidestep status",
                complaint="nothing",
                run=run.name,
            )
        elif run.asked and not run.has_events:
            yield note(
                "tensorboard.off",
                f"{run.name}: logs with tensorboard=False, so TensorBoard has nothing of it",
                "grep -rn 'tensorboard=False' --include='*.py' .",
                complaint="nothing",
                run=run.name,
            )


def files(scene: Scene) -> Iterator[Finding]:
    """Read the event files of the chosen runs: whole, and what their curves do."""
    wanting = [run for run in scene.chosen if run.has_events]
    window = max(_LEAST_BYTES, WINDOW_BYTES // max(1, len(wanting)))
    for run in wanting:
        doing(f"reading the event files in {run.event_folder}")
        yield from _files_of(scene, run, window)
    if not scene.chosen:
        yield from _found_files(scene)


def _installed() -> Finding:
    try:
        number = version("tensorboard")
    except PackageNotFoundError:
        return wrong(
            "tensorboard.installed",
            "TensorBoard is not installed in this environment",
            f"{sys.executable} -m pip install 'sidestep[sidecar]'",
            complaint="nothing",
        )
    beside = os.path.join(os.path.dirname(sys.executable), "tensorboard")
    command = shutil.which("tensorboard") or (beside if os.path.exists(beside) else "")
    if not command:
        return warning(
            "tensorboard.installed",
            f"TensorBoard {number} is installed, and its command is not on PATH",
            f"{sys.executable} -m tensorboard.main --logdir {DEFAULT_LOG_DIR}/tensorboard",
        )
    return ok("tensorboard.installed", f"TensorBoard {number} at {command}")


def _logdir(scene: Scene, runs: list[RunSeen]) -> Iterator[Finding]:
    """Whether `--logdir`, or what TensorBoard is opened over by default, is where runs log."""
    everything = [run for run in reversed(scene.runs) if run.has_events]
    if scene.logdir and not runs and everything:
        newest = everything[0]
        yield wrong(
            "tensorboard.logdir",
            f"no run logs below {scene.logdir}; the newest, {newest.name}, logs in "
            f"{newest.event_folder}",
            f"tensorboard --logdir {quoted(os.path.dirname(newest.event_folder))}",
            complaint="nothing",
        )
    elif not scene.logdir and runs:
        default = os.path.join(
            scene.cwd, scene.environ.get("SIDESTEP_LOG_DIR") or DEFAULT_LOG_DIR, "tensorboard"
        )
        newest = runs[0]
        if not is_within(newest.event_folder, default):
            yield note(
                "tensorboard.logdir",
                f"from here, launch_tensorboard.sh opens {default}; the newest run, "
                f"{newest.name}, logs in {newest.event_folder}",
                f"tensorboard --logdir {quoted(os.path.dirname(newest.event_folder))}",
                complaint="nothing",
            )


def _processes(scene: Scene, runs: list[RunSeen]) -> Iterator[Finding]:
    boards = list(scene.processes.get("tensorboards") or ())
    if not runs:
        return
    if not boards:
        yield note(
            "tensorboard.process",
            "no TensorBoard of yours runs on this machine",
            f"tensorboard --logdir {quoted(os.path.dirname(runs[0].event_folder))}",
            complaint="nothing",
        )
        return
    unread = [run for run in runs if not any(_reads(board, run) for board in boards)]
    for board in boards:
        read = [run.name for run in runs if _reads(board, run)]
        if read:
            yield ok(
                "tensorboard.process",
                f"TensorBoard (pid {board['pid']}) at http://{board['host']}:{board['port']}/ "
                f"reads {', '.join(read)}",
            )
    if unread:
        seen = ", ".join(f"{d} (pid {b['pid']})" for b in boards for d in b["logdirs"])
        newest = unread[0]
        # One that shows other work is nobody's fault.
        say = note if len(unread) < len(runs) else warning
        yield say(
            "tensorboard.process",
            f"no TensorBoard of yours reads {newest.name}, which logs in {newest.event_folder}: "
            f"what is read is {seen or 'nothing'}",
            f"tensorboard --logdir {quoted(os.path.dirname(newest.event_folder))} --port 0",
            complaint="nothing",
            run=newest.name,
        )


def _reads(board: Mapping[str, Any], run: RunSeen) -> bool:
    return any(is_within(run.event_folder, logdir) for logdir in board["logdirs"])


def _files_of(scene: Scene, run: RunSeen, window: int) -> Iterator[Finding]:
    tail = read_tail(run.event_folder, window)
    if not tail.path:
        yield from _no_file(scene, run)
        return
    if tail.torn_at is not None:
        time.sleep(_SETTLE_S)
        tail = read_tail(run.event_folder, window)
    yield from _whole(run, tail)
    trainers = scene.alive(run.name)
    pid = int(trainers[0].get("pid") or 0) if trainers else 0
    stopped = any((t.get("process") or {}).get("stopped") for t in trainers)
    well = (run.sink("tensorboard") or {}).get("error") is None and bool(scene.status)
    # What a stopped trainer or a broken sink does to curves is said elsewhere.
    alive = run.state == "running" and not stopped and well
    yield from judge(run.name, tail, alive=alive, now_s=scene.now, process=pid)


def _no_file(scene: Scene, run: RunSeen) -> Iterator[Finding]:
    sink = run.sink("tensorboard") or {}
    if sink.get("error") or not scene.status:
        return  # said with the sinks, or with the daemon
    if run.records or run.last_step is not None:
        lag = int(sink.get("lag_records") or 0)
        gone = not lag and run.records > 0
        yield (wrong if gone else note)(
            "tensorboard.files",
            f"{run.name}: there is no event file in {run.event_folder}"
            + (": it was deleted after it was written" if gone else " yet"),
            f"sidestep export {quoted(run.name)} --format csv" if gone else "sidestep drain",
            complaint="nothing",
            run=run.name,
        )
    else:
        yield note(
            "tensorboard.files",
            f"{run.name}: nothing was emitted yet, so there is nothing to show",
            f"sidestep tail {quoted(run.name)}",
            complaint="nothing",
            run=run.name,
        )


def _whole(run: RunSeen, tail: Tail) -> Iterator[Finding]:
    name = os.path.basename(tail.path)
    if tail.damaged_at is not None:
        yield wrong(
            "tensorboard.files",
            f"{run.name}: the event file {tail.path} is damaged at byte "
            f"{wording.count(tail.damaged_at)}: TensorBoard shows nothing that comes after it. The "
            "archive has all the numbers",
            f"sidestep export {quoted(run.name)} --format csv",
            complaint="stops",
            run=run.name,
        )
    elif tail.torn_at is not None:
        yield warning(
            "tensorboard.files",
            f"{run.name}: the event file {tail.path} ends inside a record, at byte "
            f"{wording.count(tail.torn_at)}: its writer was killed. TensorBoard shows all before "
            "it; the next worker cuts it there and goes on",
            "sidestep drain",
            complaint="stops",
            run=run.name,
        )
    else:
        ago = wording.duration(max(0.0, time.time() - tail.changed_s))
        yield ok(
            "tensorboard.files",
            f"{run.name}: {name}, {size(tail.nbytes)}, ends in a whole record, written {ago} ago",
            run=run.name,
        )


def _found_files(scene: Scene) -> Iterator[Finding]:
    """With no run known: is there anything in the directory that somebody would look into?"""
    root = scene.logdir or os.path.join(
        scene.cwd, scene.environ.get("SIDESTEP_LOG_DIR") or DEFAULT_LOG_DIR
    )
    doing(f"looking for event files in {root}")
    places = [root, os.path.join(root, "tensorboard")]
    for place in list(places):
        try:
            places += [entry.path for entry in os.scandir(place) if entry.is_dir()][:100]
        except OSError:
            continue
    having = [place for place in dict.fromkeys(places) if event_files(place)]
    if having:
        yield ok("tensorboard.files", f"{wording.counted(len(having), 'run')} in {root}")
        return
    say = wrong if scene.logdir else note
    yield say(
        "tensorboard.files",
        f"there are no event files in {root}, and no run is known: nothing was logged yet, or it "
        "was logged elsewhere",
        "sidestep run -- python train.py",
        complaint="nothing",
    )

"""Finds the run that is to be exported, and sees to it that its archive is complete, or says not.

A run is looked for where its numbers would be: in the log directory that was named, or else in the
one of the environment, the default one, and those of the daemon's runs. The daemon's archive may be
a moment behind: it is waited for.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from sidestep.proto.paths import DEFAULT_LOG_DIR, OUTBOX_SUFFIX, outbox_dirs

from ..archive.reader import Run, find_run, runs
from ..config import load
from ..journal.reader import JournalReader
from ..supervision import cursor_file
from . import wording
from .common import CommandError
from .control_client import Control, NoAnswerError, NoDaemonError
from .drain import await_drained, drain_progress

_PATIENCE_S: Final = 60.0
_TROUBLED_PATIENCE_S: Final = 10.0
"""A worker that was killed is back after a moment; a full disk stays full."""

_MAX_NAMES: Final = 10


@dataclass(frozen=True, slots=True)
class Known:
    """A run that the daemon or its journal knows.

    Attributes:
        log_dir: as the daemon spells it.
        over: whether nothing of it is still to come or to be written.
        sinks: what the daemon says of them, by name.
    """

    name: str
    log_dir: str
    over: bool
    sinks: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be exported.

    Attributes:
        run: the run's archive, or None when the run has none.
        missing: why it may not hold all that was emitted, as a sentence; None when it does.
    """

    run: Run | None
    missing: str | None


def open_source(control: Control, name: str, log_dir: str | None) -> Source:
    """The run called `name`, its archive as complete as it can be made.

    Args:
        control: the daemon.
        name: the run's name.
        log_dir: the only log directory to look into; None for all that may be meant.

    Raises:
        CommandError: there is no such run, or more than one; says which there are.
    """
    try:
        known = _known(control.request("status"))
    except NoDaemonError:
        return _without_daemon(control, name, log_dir)
    except NoAnswerError as error:
        run = find_run(_log_dir(name, log_dir, []), name)
        return Source(run, f"what the daemon has not archived is missing: {error}")
    directory = _log_dir(name, log_dir, known)
    try:
        missing = _await_archive(control, _of(name, directory, known))
    except NoDaemonError:
        return _without_daemon(control, name, log_dir)  # it left, when all was written or before
    return Source(find_run(directory, name), missing)


def _known(status: Mapping[str, Any]) -> list[Known]:
    found: list[Known] = []
    for run in status["runs"]:
        sinks = {sink["name"]: sink for sink in run["sinks"]}
        over = run["state"] != "running" and not any(one["lag_records"] for one in sinks.values())
        found.append(Known(run["run"], run["log_dir"], over, sinks))
    return found


def _of(name: str, directory: str, known: Sequence[Known]) -> Known | None:
    place = os.path.realpath(directory)
    return next(
        (one for one in known if one.name == name and os.path.realpath(one.log_dir) == place), None
    )


# --- which run ---------------------------------------------------------------------------------


def _log_dir(name: str, log_dir: str | None, known: Sequence[Known]) -> str:
    """The log directory that the run is in."""
    own = log_dir or os.environ.get("SIDESTEP_LOG_DIR") or None
    first = own or DEFAULT_LOG_DIR
    others = [] if log_dir else [one.log_dir for one in known]
    spelled: dict[str, str] = {}
    for place in (first, *others):
        spelled.setdefault(os.path.realpath(place), place)
    places = list(spelled.values())
    # Of a run that is over and has no archive, somebody has deleted it: it is meant last of all.
    holding = [
        place
        for place in places
        if find_run(place, name) is not None
        or _of(name, place, [one for one in known if not one.over]) is not None
    ] or [place for place in places if _of(name, place, known) is not None]
    if len(holding) == 1 or (holding and own and holding[0] == own):
        return holding[0]
    if holding:
        raise CommandError(
            f"there are runs called {wording.printable(name)!r} in "
            f"{', '.join(map(wording.printable, holding))}. Name one of them with --log-dir"
        )
    there = {run.name for place in places for run in runs(place)}
    if log_dir is None:
        there |= {one.name for one in known}
    raise CommandError(_unknown(name, sorted(there), places))


def _unknown(name: str, there: Sequence[str], places: Sequence[str]) -> str:
    where = ", ".join(wording.printable(os.path.abspath(place)) for place in places)
    text = f"there is no run {wording.printable(name)!r} in {where}."
    if not there:
        return f"{text} No run is there at all: name another log directory with --log-dir"
    near = get_close_matches(name, there, 1, 0.5)
    if near:
        text += f" Did you mean {wording.printable(near[0])!r}?"
    more = f" and {len(there) - _MAX_NAMES} more" if len(there) > _MAX_NAMES else ""
    names = ", ".join(map(wording.printable, there[:_MAX_NAMES]))
    return f"{text} There are: {names}{more}"


# --- whether all of it is there ----------------------------------------------------------------


def _await_archive(control: Control, run: Known | None) -> str | None:
    """Wait until the daemon has archived what it has by now; why it cannot, as a sentence.

    Raises:
        NoDaemonError: it left meanwhile.
    """
    if run is None:
        return None  # of an earlier time: this daemon has nothing of it
    sink = run.sinks.get("archive")
    if sink is None:
        return (
            "the daemon keeps no archive, so what it has had since is missing. Set `archive: true` "
            "in its configuration"
        )
    troubled = sink["state"] in wording.TROUBLED
    patience_s = _TROUBLED_PATIENCE_S if troubled else _PATIENCE_S
    only = {"sink": "archive", "run": run.name, "log_dir": run.log_dir}
    try:
        with drain_progress() as show:
            if await_drained(control, None, patience_s, show, only=only):
                return None
        why = wording.sink(sink) if troubled else f"not within {patience_s:g} s"
    except NoDaemonError:
        raise
    except CommandError as error:  # the sink cannot work
        why = str(error)
    return f"not all is archived yet: {why}. `sidestep status` shows what the archive is doing"


def _without_daemon(control: Control, name: str, log_dir: str | None) -> Source:
    """The run, and what is left of it that no daemon has archived, with none there that will."""
    state_dir = str(load(None, os.environ).state_dir)
    left = list(_left_behind(state_dir))
    directory = _log_dir(name, log_dir, [one for one, _ in left])
    ours = _of(name, directory, [one for one, lag in left if lag])
    outboxes = [
        path
        for place in outbox_dirs(control.paths, state_dir, os.getuid())
        for path in Path(place).glob(f"*{OUTBOX_SUFFIX}")
    ]
    what = [f"{wording.counted(lag, 'record')} in the journal" for one, lag in left if one is ours]
    what += ["what is in the outbox of a trainer, of this run or another"] if outboxes else []
    missing = (
        f"no daemon is running, and not all is archived yet: {' and '.join(what)}. "
        "`sidestep drain` writes it; then export again"
    )
    return Source(find_run(directory, name), missing if what else None)


def _left_behind(state_dir: str) -> Iterator[tuple[Known, int]]:
    """The runs in the journal, each with the records that its archive's cursor has not passed."""
    path = os.path.join(state_dir, "journal.sqlite")
    if not os.path.exists(path):
        return
    try:
        reader = JournalReader(path)
        try:
            identity = reader.identity()
            for run_id, spec in reader.runs().items():
                file = cursor_file.file_name(spec.name, spec.log_dir, "archive")
                cursor = cursor_file.load(os.path.join(state_dir, "cursors", file), identity)
                lag = max(0, reader.total(run_id) - cursor.total)
                yield Known(spec.name, spec.log_dir, not lag, {}), lag
        finally:
            reader.close()
    except sqlite3.Error as error:
        raise CommandError(f"the journal {path} cannot be read: {error}") from error

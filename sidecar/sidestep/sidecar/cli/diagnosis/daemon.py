"""Whether there is a daemon, whether it answers, and what it says is wrong with itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, Final, cast

from sidestep.proto.paths import MAX_SOCKET_PATH_BYTES

from .. import wording
from .curves import quoted
from .finding import Finding, note, ok, warning, wrong
from .isolate import doing
from .machine import is_there, size
from .scene import Scene

_LOG_TAIL_BYTES: Final = 4096
_FEW_FILES: Final = 1024
_NEARLY: Final = 0.9


def check(scene: Scene) -> Iterator[Finding]:
    """Look for the daemon, and ask it."""
    if scene.paths is None:
        yield wrong(
            "daemon.paths",
            scene.paths_problem,
            f"export SIDESTEP_RUNTIME_DIR=/tmp/sidestep-{scene.uid}",
            complaint="nothing",
        )
        return
    if "daemon" in scene.problems:
        yield wrong(
            "daemon.lock",
            f"whether a daemon runs could not be found out: {scene.problems['daemon']}",
            f"ls -la {quoted(scene.paths.directory)}",
        )
        return
    if scene.journal_damage:
        yield warning(
            "daemon.journal_file",
            f"the journal in {scene.state_dir} cannot be read ({scene.journal_damage}); a daemon "
            "that finds it so puts it aside and begins a new one",
            "sidestep stop; sidestep start" if scene.lives else "sidestep start",
            complaint="stops",
        )
    if not scene.lives:
        yield from _none(scene)
        return
    yield from _process(scene)
    yield from _said(scene)


def _none(scene: Scene) -> Iterator[Finding]:
    assert scene.paths is not None
    paths = scene.paths
    alive = scene.alive()
    dead = [t for t in scene.trainers if not t["alive"] and not t["damaged"]]
    behind = [run for run in scene.runs if any(s["lag_records"] for s in run.sinks)]
    if alive:
        held = max(float(t.get("fullness") or 0) for t in alive)
        said = _last_words(paths.log)
        yield wrong(
            "daemon.none",
            f"no daemon runs in {paths.directory}, and {wording.counted(len(alive), 'trainer')} "
            f"({_runs(alive)}) wait for one: their outboxes hold what they emit, and are up to "
            f"{held:.0%} full"
            + (f". The last one said: {said}" if said else "")
            + (". It was stopped by hand" if os.path.exists(paths.stopped) else ""),
            "sidestep start",
            complaint="stops",
        )
    elif dead or behind:
        left = [f"outboxes of dead trainers ({_runs(dead)})"] if dead else []
        if behind:
            left.append(f"rows that a sink has not written ({', '.join(r.name for r in behind)})")
        yield warning(
            "daemon.left",
            f"no daemon runs, and there is something to write: {' and '.join(left)}. The next "
            "daemon does it",
            "sidestep drain",
            complaint="stops",
        )
    else:
        yield ok(
            "daemon.none",
            f"no daemon runs in {paths.directory}, and none is needed: the next training starts it",
        )
    yield from _elsewhere(scene)


def _elsewhere(scene: Scene) -> Iterator[Finding]:
    """A daemon of this user's that this shell does not see."""
    assert scene.paths is not None
    guard = os.path.join(scene.state_dir, "daemon.lock")
    doing(f"looking at {guard}")
    holder = _read_json(guard)
    places: dict[str, int] = {}
    if holder.get("runtime_dir") and is_there(int(holder.get("pid") or 0)):
        places[str(holder["runtime_dir"])] = int(holder["pid"])
    for other in scene.processes.get("daemons") or ():
        places.setdefault(str(other["runtime_dir"]), int(other["pid"]))
    ours = os.path.realpath(scene.paths.directory)
    others = {p: pid for p, pid in places.items() if not p or os.path.realpath(p) != ours}
    if not others:
        return
    shared = str(holder.get("runtime_dir") or "")
    place = shared if shared in others else next(iter(others))
    shown = [f"{p or 'the default one'} (pid {pid})" for p, pid in list(others.items())[:3]]
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    yield (warning if place == shared else note)(
        "daemon.elsewhere",
        f"this shell looks into {scene.paths.directory}; a daemon of yours runs in the runtime "
        f"directory {', '.join(shown)}{more}"
        + (f", and uses the state directory {scene.state_dir} too" if place == shared else ""),
        f"export SIDESTEP_RUNTIME_DIR={quoted(place)}" if place else "unset SIDESTEP_RUNTIME_DIR",
        complaint="nothing",
    )


def _process(scene: Scene) -> Iterator[Finding]:
    assert scene.paths is not None
    process: Any = scene.daemon.get("process") or {}
    pid = scene.pid
    if process.get("stopped"):
        yield wrong(
            "daemon.stopped",
            f"the daemon (pid {pid}) is stopped (SIGSTOP). Trainers hold what they emit",
            f"kill -CONT {pid}",
            complaint="stops",
        )
        return
    if scene.daemon.get("status") is None:
        problem = scene.daemon.get("problem")
        said = "holds its lock, and did not answer" if problem == "silent" else str(problem)
        yield wrong(
            "daemon.silent",
            f"the daemon (pid {pid or 'unknown'}) {said}: it is overloaded, hangs in a disk, or is "
            f"only just starting. Its log is {scene.paths.log}",
            f"tail -n 20 {quoted(scene.paths.log)}",
            complaint="stops",
        )
        return
    about = scene.status.get("daemon") or {}
    uptime = about.get("uptime_s")
    since = f", up {wording.duration(uptime)}" if isinstance(uptime, int | float) else ""
    longest = len(os.fsencode(scene.paths.feed_endpoint)) - len("ipc://")
    yield ok(
        "daemon.answers",
        f"pid {pid}{since}, answers in {scene.paths.directory} (socket paths of up to {longest} "
        f"of {MAX_SOCKET_PATH_BYTES} bytes)",
    )
    limit, used = process.get("files_limit"), process.get("open_files")
    if isinstance(limit, int) and isinstance(used, int) and limit > 0:
        text = f"open files: {used} of {wording.count(limit)} (ulimit -n)"
        if used > _NEARLY * limit or limit < _FEW_FILES:
            yield warning(
                "daemon.files",
                f"{text}: a trainer too many is sent away, and delivered only when it has ended",
                "ulimit -n 65536; sidestep stop && sidestep start",
                complaint="stops",
            )
        else:
            yield ok("daemon.files", text)


def _said(scene: Scene) -> Iterator[Finding]:
    """What the daemon says of itself that nobody else does."""
    about = scene.status.get("daemon") or {}
    state_dir = str(about.get("state_dir") or scene.state_dir)
    if error := about.get("storage_error"):
        yield wrong(
            "daemon.journal",
            f"the journal in {state_dir} takes nothing: {error}. Trainers hold their metrics "
            "meanwhile, as long as they have room",
            f"df -h {quoted(state_dir)}",
            complaint="stops",
        )
    if refused := wording.refused(about.get("refused")):
        folder = str((about.get("refused") or {}).get("quarantine") or state_dir)
        yield warning("daemon.refused", refused, f"cat {quoted(folder)}/*.txt")
    if many := about.get("damaged_journals"):
        doing(f"looking at the damaged journals in {state_dir}")
        nbytes = sum(
            os.path.getsize(os.path.join(state_dir, name))
            for name in os.listdir(state_dir)
            if name.startswith("journal.sqlite.damaged-")
        )
        yield warning(
            "daemon.damaged",
            f"{wording.counted(many, 'damaged journal')} ({size(nbytes)}) were put aside: what "
            "they held and no sink had written is in them alone. When nobody needs them:",
            f"rm {quoted(state_dir)}/journal.sqlite.damaged-*",
            complaint="memory",
        )
    if error := (about.get("prometheus") or {}).get("error"):
        yield wrong(
            "daemon.prometheus",
            f"Prometheus is shown nothing: {error}. It is tried again; with another address:",
            "sidestep stop && SIDESTEP_PROMETHEUS=127.0.0.1:9400 sidestep start",
        )
    if many := about.get("underivable"):
        yield warning(
            "daemon.underivable",
            f"{wording.count(many)} observations of representations were malformed and passed",
            f"grep -i derive {quoted(scene.paths.log) if scene.paths else ''}",
        )


def _last_words(log: str) -> str:
    """The last line of the daemon's log, when it speaks of trouble."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.path.getsize(log) - _LOG_TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    last = lines[-1] if lines else ""
    return last[:300] if last.startswith(("sidestep:", "sidestep.")) or "Error" in last else ""


def _read_json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found: object = json.load(file)
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _runs(trainers: list[Any]) -> str:
    return ", ".join(dict.fromkeys(str(t.get("run")) for t in trainers))

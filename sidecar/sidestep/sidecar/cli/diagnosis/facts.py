"""Gathers what can be known before anything is judged; each function runs in a process of its own.

Every answer is made of what JSON can hold, and becomes a part of the `Scene`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import psutil
from msgpack import UnpackException

from sidestep.proto import RunSpec
from sidestep.proto.paths import RuntimePaths, outbox_dirs

from ..common import CommandError
from ..control_client import Control, NoAnswerError
from . import machine, outboxes
from .isolate import doing

_ANSWER_S: Final = 1.5
_MOMENT_S: Final = 0.3
_PATIENT_TRIES: Final = 2
_ELDER_S: Final = 10.0
"""What a dead trainer left is adopted within a second or two by a daemon that lives."""


def daemon(paths: RuntimePaths) -> dict[str, Any]:
    """The daemon of this runtime directory: who it is, how its process is, and what it says.

    Returns:
        `pid` (0 for none), `version`, `endpoint`, `state_dir`, `process` (see
        `machine.describe_process`), `status` (its answer, or None) and `problem` (why there is
        none).
    """
    doing(f"looking for the daemon in {paths.directory}")
    control = Control(paths)
    who = control.daemon()
    if who is None:
        return {"pid": 0, "status": None, "problem": ""}
    found: dict[str, Any] = {
        "pid": who.pid,
        "version": who.version,
        "endpoint": who.endpoint,
        "state_dir": who.state_dir,
        "process": machine.describe_process(who.pid) if who.pid else {},
        "status": None,
        "problem": "",
    }
    if found["process"].get("stopped"):
        return found  # it would only be waited for
    doing(f"asking the daemon (pid {who.pid})")
    try:
        found["status"] = _asked_twice(control, who.pid)
    except NoAnswerError:
        found["problem"] = "silent"
    except CommandError as error:
        found["problem"] = str(error)
    return found


def _asked_twice(control: Control, pid: int) -> dict[str, Any]:
    """The daemon's status, a moment later, with what was wrong with a sink only a moment ago.

    One that fails at each try is well in between, for as long as a try lasts.
    """
    before = _answer(control, pid)
    time.sleep(_MOMENT_S)
    now = _answer(control, pid)
    errors = {
        (run.get("run"), run.get("log_dir"), sink.get("name")): sink
        for run in before.get("runs") or ()
        for sink in run.get("sinks") or ()
        if sink.get("error")
    }
    for run in now.get("runs") or ():
        for sink in run.get("sinks") or ():
            earlier = errors.get((run.get("run"), run.get("log_dir"), sink.get("name")))
            if earlier and not sink.get("error") and sink.get("lag_records"):
                sink.update(state=earlier.get("state"), error=earlier["error"])
    return now


def _answer(control: Control, pid: int) -> dict[str, Any]:
    """The daemon's status; one that is busy, or waits for a CPU, is asked once more."""
    for _ in range(_PATIENT_TRIES):
        used = machine.cpu_s(pid)
        try:
            return control.request("status", _ANSWER_S)
        except NoAnswerError:
            if not machine.is_runnable(pid) and machine.cpu_s(pid) == used:
                raise
            doing(f"asking the daemon (pid {pid}) again, which is busy")
    return control.request("status", _ANSWER_S)


def trainers(paths: RuntimePaths, state_dirs: Sequence[str]) -> list[dict[str, Any]]:
    """The outboxes in the folders of this runtime directory, living and dead.

    Args:
        paths: the runtime directory.
        state_dirs: the state directories that clients here may have.
    """
    places = [outbox_dirs(paths, state, os.getuid()) for state in state_dirs]
    folders = dict.fromkeys(folder for three in places for folder in three)
    found: list[dict[str, Any]] = []
    for folder in folders:
        doing(f"looking at the outboxes in {folder}")
        found += outboxes.look_into(folder)
    return found


def strangers(paths: RuntimePaths, state_dir: str) -> list[dict[str, Any]]:
    """Folders in shared memory with outboxes of dead trainers of other runtime directories.

    Returns:
        For each `folder`, `outboxes`, `bytes`, `runs`, and whether a trainer in it is `alive`.
    """
    ours = outbox_dirs(paths, state_dir, os.getuid())[1]
    base = os.path.dirname(ours)
    doing(f"looking at the outboxes in {base}")
    found: list[dict[str, Any]] = []
    try:
        names = sorted(os.listdir(base))
    except OSError:
        return []
    for name in names:
        folder = os.path.join(base, name)
        if folder == ours or folder.startswith(ours + "-"):
            continue
        there = outboxes.look_into(folder)
        dead = [one for one in there if not one["alive"] and not one["damaged"]]
        old = [one for one in dead if time.time() - one["changed_s"] > _ELDER_S]
        if old:
            found.append(
                {
                    "folder": folder,
                    "outboxes": len(old),
                    "bytes": sum(one["bytes"] for one in old),
                    "runs": sorted({one["run"] for one in old}),
                    "alive": any(one["alive"] for one in there),
                }
            )
    return found


def gpus() -> dict[str, Any]:
    """What NVML says here, without the daemon: `gpus`, `error`, and `devices` of the kernel's."""
    devices = [n for n in os.listdir("/dev") if n.startswith("nvidia") and n[6:].isdigit()]
    found: dict[str, Any] = {"gpus": [], "error": None, "devices": sorted(devices)}
    doing("loading NVML, NVIDIA's driver library")
    try:
        from ...samplers.nvml import Nvml, NvmlUnavailableError
    except ImportError as error:
        return {**found, "error": f"{error}", "install": True}
    try:
        nvml = Nvml()
    except NvmlUnavailableError as error:
        return {**found, "error": str(error)}
    doing("asking NVML for its GPUs")
    count = nvml.query("nvmlDeviceGetCount")
    if count is None:
        return {**found, "error": "NVML does not count its devices"}
    doing("asking NVML for the values of its GPUs")
    read: Any = nvml.read()
    keys = ("index", "uuid", "name", "parent")
    found["gpus"] = [
        {**{key: gpu.get(key, "") for key in keys}, "values": sorted(gpu["values"])}
        for gpu in read["gpus"]
    ]
    return {**found, "error": read["error"]}


def processes() -> dict[str, Any]:
    """Other processes of this user here: TensorBoards with their directories, daemons, workers.

    Returns:
        `tensorboards`: `pid`, `logdirs` (absolute), `host`, `port`; `daemons`: `pid`, `runtime_dir`
        ("" for the default one); `workers`: `pid`, `parent`, `sink`, `stopped`, `memory_bytes`.
    """
    found: dict[str, Any] = {"tensorboards": [], "daemons": [], "workers": []}
    doing("looking at this machine's processes")
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if process.uids().real != os.getuid():
                continue
            if board := _tensorboard_words(words):
                found["tensorboards"].append(_tensorboard(process, board))
            elif "sidestep.sidecar" in words and "serve" in words:
                runtime = process.environ().get("SIDESTEP_RUNTIME_DIR", "")
                found["daemons"].append({"pid": process.pid, "runtime_dir": runtime})
            elif "sidestep.sidecar.worker" in words or "sidestep.sidecar.derive.worker" in words:
                found["workers"].append(_worker(process, words))
        except (psutil.Error, OSError):
            continue
    return found


def _worker(process: psutil.Process, words: Sequence[str]) -> dict[str, Any]:
    module = "sidestep.sidecar.worker"
    return {
        "pid": process.pid,
        "parent": process.ppid(),
        "sink": words[words.index(module) + 1] if module in words else "the derivers",
        "stopped": process.status() == psutil.STATUS_STOPPED,
        "memory_bytes": process.memory_info().rss,
    }


def _tensorboard_words(words: Sequence[str]) -> list[str]:
    """The arguments of a TensorBoard; none for any other process."""
    for number, word in enumerate(words[:4]):
        if os.path.basename(word) == "tensorboard" or word in ("tensorboard.main", "tensorboard"):
            return list(words[number + 1 :]) or [""]
    return []


def _tensorboard(process: psutil.Process, arguments: Sequence[str]) -> dict[str, Any]:
    values: dict[str, str] = {}
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, is_joined, value = word.partition("=")
        if name.startswith("--"):
            values[name.lstrip("-")] = value if is_joined else following
    logdirs = [values["logdir"]] if values.get("logdir") else []
    parts = [part for part in values.get("logdir_spec", "").split(",") if part]
    logdirs += [part.rpartition(":")[2] for part in parts]
    try:
        cwd = process.cwd()
    except (psutil.Error, OSError):
        cwd = "/"
    return {
        "pid": process.pid,
        "logdirs": [os.path.realpath(os.path.join(cwd, path)) for path in logdirs],
        "port": values.get("port") or "6006",
        "host": values.get("host") or "localhost",
    }


def journal(state_dir: str, daemon_lives: bool) -> dict[str, Any]:
    """The runs in a journal: what they asked for, and how far each sink is.

    Args:
        state_dir: where it is.
        daemon_lives: whether a daemon writes it just now.

    Returns:
        `damage`: why it cannot be read, or ""; and `runs`, for each of them `run`, `log_dir`,
        `tensorboard`, `wandb` (None: not asked for), `records`, and `cursors` by sink: `total`,
        `dropped`, `state`, `changed_s`.
    """
    path = os.path.join(state_dir, "journal.sqlite")
    doing(f"reading the journal {path}")
    if not os.path.exists(path):
        return {"damage": "", "runs": []}
    # A journal that nobody has open, and that has no log, is read without making one; nor is the
    # index of a log that is there written.
    at_rest = not daemon_lives and not os.path.exists(path + "-wal")
    mode = "immutable=1" if at_rest else "mode=ro&readonly_shm=1"
    quoted = path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    connection = sqlite3.connect(f"file:{quoted}?{mode}", uri=True, timeout=1.0)
    try:
        return {"damage": "", "runs": list(_runs(connection, state_dir))}
    except (sqlite3.Error, LookupError, TypeError, ValueError, UnpackException) as error:
        return {"damage": f"{type(error).__name__}: {error}", "runs": []}
    finally:
        connection.close()


def _runs(connection: sqlite3.Connection, state_dir: str) -> Iterator[dict[str, Any]]:
    from ...journal.reader import read_runs, read_totals

    (identity,) = connection.execute("SELECT id FROM identity").fetchone()
    totals = read_totals(connection)
    for run_id, spec in read_runs(connection).items():
        yield {
            "run": spec.name,
            "log_dir": spec.log_dir,
            "tensorboard": spec.tensorboard
            if isinstance(spec.tensorboard, bool)
            else dict(spec.tensorboard),
            "wandb": None if spec.wandb is None else dict(spec.wandb),
            "records": totals.get(run_id, 0),
            "cursors": dict(_cursors(state_dir, spec, int(identity))),
        }


def _cursors(
    state_dir: str, spec: RunSpec, identity: int
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from ...supervision import cursor_file

    folder = os.path.join(state_dir, "cursors")
    stem = cursor_file.file_name(spec.name, spec.log_dir, "")
    try:
        names = [name for name in os.listdir(folder) if name.startswith(stem)]
    except OSError:
        return
    for name in names:
        sink = name.removeprefix(stem)
        path = os.path.join(folder, name)
        found = None if "." in sink else cursor_file.find(path, identity)
        if found is not None:
            state = found.state or {}
            yield (
                sink,
                {
                    "total": found.total,
                    "dropped": found.dropped,
                    "state": {k: v for k, v in state.items() if isinstance(v, str | int)},
                    "changed_s": os.stat(path).st_mtime,
                },
            )

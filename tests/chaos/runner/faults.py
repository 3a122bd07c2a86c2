"""How each kind of fault is caused, and undone: real signals, real file systems, real sockets."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

import psutil

from tests.support.sandbox import SIDESTEP

from .hostile import junk_connections, junk_frames
from .part import ENDS
from .plan import DOOMED, SHARED, Fault
from .stage import Stage

Undo = Callable[[], object]
Caused = tuple[str, Undo | None]
"""What was hit, in words, and what ends it after the fault's time."""

_T = TypeVar("_T")

NOBODY: Final = "nobody there"


def cause(stage: Stage, fault: Fault) -> Caused:
    """Cause `fault` now."""
    return _CAUSES[fault.kind](stage, fault)


def _pick(those: Sequence[_T], fault: Fault) -> _T | None:
    return those[fault.pick % len(those)] if those else None


# --- the daemon ----------------------------------------------------------------------------------


def _daemon_kill(stage: Stage, fault: Fault) -> Caused:
    process = stage.daemon()
    stage.daemon_due(fault.hold_s)
    if process is None:
        return NOBODY, None
    _kill(process)
    return f"pid {process.pid}", None


def _daemon_kill_all(stage: Stage, fault: Fault) -> Caused:
    """As by the out-of-memory killer of a whole container."""
    process = stage.daemon()
    stage.daemon_due(fault.hold_s)
    if process is None:
        return NOBODY, None
    children = _children(process)
    for one in [process, *children]:
        _kill(one)
    return f"pid {process.pid} and {len(children)} of its processes", None


def _daemon_stop(stage: Stage, fault: Fault) -> Caused:
    process = stage.daemon()
    if process is None:
        return NOBODY, None
    stopped = [process, *(_children(process) if fault.draw % 2 else [])]
    for one in stopped:
        _signal(one, signal.SIGSTOP)

    def resume() -> None:
        for one in stopped:
            _signal(one, signal.SIGCONT)

    return f"pid {process.pid} and {len(stopped) - 1} of its processes", resume


def _daemon_term(stage: Stage, fault: Fault) -> Caused:
    process = stage.daemon()
    stage.daemon_due(fault.hold_s)
    if process is None:
        return NOBODY, None
    _signal(process, signal.SIGTERM)
    return f"pid {process.pid}", None


def _daemon_term_kill(stage: Stage, fault: Fault) -> Caused:
    process = stage.daemon()
    stage.daemon_due(fault.hold_s)
    if process is None:
        return NOBODY, None
    _signal(process, signal.SIGTERM)
    return f"pid {process.pid}", lambda: _kill(process)


# --- its processes -------------------------------------------------------------------------------


def _worker_kill(stage: Stage, fault: Fault) -> Caused:
    worker = _pick(stage.sandbox.workers(), fault)
    if worker is None:
        return NOBODY, None
    words = stage.words_of(worker)
    _kill(worker)
    return words, None


def _worker_stop(stage: Stage, fault: Fault) -> Caused:
    worker = _pick(stage.sandbox.workers(), fault)
    if worker is None:
        return NOBODY, None
    _signal(worker, signal.SIGSTOP)
    return stage.words_of(worker), lambda: _signal(worker, signal.SIGCONT)


def _helper_kill(stage: Stage, fault: Fault) -> Caused:
    """The derivers' process, or the GPU sampler's."""
    helper = _pick(stage.helpers(), fault)
    if helper is None:
        return NOBODY, None
    words = stage.words_of(helper)
    _kill(helper)
    return words, None


# --- trainers --------------------------------------------------------------------------------


def _trainer_signal(stage: Stage, fault: Fault, number: int) -> Caused:
    actor = _pick([actor for actor in stage.troupe.now if actor.alive], fault)
    if actor is None:
        return NOBODY, None
    actor.signal(number)
    return str(actor), None


def _trainer_kill(stage: Stage, fault: Fault) -> Caused:
    return _trainer_signal(stage, fault, signal.SIGKILL)


def _trainer_term(stage: Stage, fault: Fault) -> Caused:
    return _trainer_signal(stage, fault, signal.SIGTERM)


def _trainer_end(stage: Stage, fault: Fault) -> Caused:
    actor = _pick([actor for actor in stage.troupe.now if actor.alive], fault)
    if actor is None:
        return NOBODY, None
    end = ENDS[fault.draw % len(ENDS)]
    actor.order(end)
    return f"{actor}: {end}", None


def _trainer_stop(stage: Stage, fault: Fault) -> Caused:
    actor = _pick([actor for actor in stage.troupe.now if actor.alive], fault)
    if actor is None:
        return NOBODY, None
    actor.signal(signal.SIGSTOP)
    return str(actor), lambda: actor.signal(signal.SIGCONT)


# --- disks -------------------------------------------------------------------------------------


def _logs_full(stage: Stage, fault: Fault) -> Caused:
    return "filled", stage.disk(SHARED).fill()


def _state_full(stage: Stage, fault: Fault) -> Caused:
    return "filled", stage.disk("s").fill()


def _logs_read_only(stage: Stage, fault: Fault) -> Caused:
    # A file that is open for writing keeps a file system from becoming read-only.
    for worker in stage.sandbox.workers():
        _kill(worker)
    undo = stage.disk(SHARED).make_read_only()
    return ("all workers killed" if undo else "it is in use: all workers killed"), undo


def _logs_deleted(stage: Stage, fault: Fault) -> Caused:
    shutil.rmtree(stage.sandbox.root / DOOMED, ignore_errors=True)
    return "deleted", None


# --- who speaks to the daemon --------------------------------------------------------------------


def _hostile_frames(stage: Stage, fault: Fault) -> Caused:
    sent = junk_frames(stage.sandbox.paths.data_endpoint, stage.sandbox.logs, fault.draw)
    return f"{sent} frames", None


def _hostile_bytes(stage: Stage, fault: Fault) -> Caused:
    path = stage.sandbox.paths.data_endpoint.removeprefix("ipc://")
    sockets = junk_connections(path, random.Random(fault.draw))
    return f"{len(sockets)} connections", lambda: [one.close() for one in sockets]


def _tail_stuck(stage: Stage, fault: Fault) -> Caused:
    """A `tail` whose output nobody reads."""
    tail = subprocess.Popen(
        [*SIDESTEP, "tail", "--json", "--history", "1000"],
        cwd=stage.sandbox.work,
        env=stage.sandbox.env(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )

    def end() -> None:
        tail.kill()
        tail.wait(30)
        if tail.stdout is not None:
            tail.stdout.close()

    return f"pid {tail.pid}", end


_CAUSES: Final[dict[str, Callable[[Stage, Fault], Caused]]] = {
    "daemon-kill": _daemon_kill,
    "daemon-kill-all": _daemon_kill_all,
    "daemon-stop": _daemon_stop,
    "daemon-term": _daemon_term,
    "daemon-term-kill": _daemon_term_kill,
    "worker-kill": _worker_kill,
    "worker-stop": _worker_stop,
    "helper-kill": _helper_kill,
    "trainer-kill": _trainer_kill,
    "trainer-term": _trainer_term,
    "trainer-end": _trainer_end,
    "trainer-stop": _trainer_stop,
    "logs-full": _logs_full,
    "logs-read-only": _logs_read_only,
    "logs-deleted": _logs_deleted,
    "state-full": _state_full,
    "hostile-frames": _hostile_frames,
    "hostile-bytes": _hostile_bytes,
    "tail-stuck": _tail_stuck,
}


def _signal(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _kill(process: psutil.Process) -> None:
    _signal(process, signal.SIGKILL)


def _children(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []

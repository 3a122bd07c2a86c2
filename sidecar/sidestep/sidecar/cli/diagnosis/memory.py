"""What grows: the daemon's processes, the journal behind a slow sink, outboxes in shared memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from .. import wording
from .curves import quoted
from .finding import Finding, ok, warning
from .isolate import doing
from .machine import size
from .scene import Scene

_MUCH_BYTES: Final = 2_000_000_000
"""For all of the daemon's processes; each sink's worker of a few runs has some 50 MB."""

_HISTORY_BYTES: Final = 64 << 20
_JOURNAL_BYTES: Final = 4 * _HISTORY_BYTES
_ELDER_S: Final = 10.0
_FOLDERS: Final = 4


def check(scene: Scene) -> Iterator[Finding]:
    """Add up memory and files, and say who holds them."""
    yield from _processes(scene)
    yield from _journal(scene)
    yield from _outboxes(scene)
    yield from _strangers(scene)


def _processes(scene: Scene) -> Iterator[Finding]:
    own = (scene.daemon.get("process") or {}).get("memory_bytes")
    if not scene.pid or not isinstance(own, int):
        return
    workers = [w for w in scene.processes.get("workers") or () if w["parent"] == scene.pid]
    total = own + sum(int(w["memory_bytes"]) for w in workers)
    text = (
        f"the daemon has {size(own)}, with its {wording.counted(len(workers), 'worker')} "
        f"{size(total)}"
    )
    if total > _MUCH_BYTES:
        yield warning(
            "memory.daemon",
            f"{text}. Each run that is live has a worker for each of its sinks, of 30 to 150 MB",
            f"ps --ppid {scene.pid} -o pid,rss,etime,args --sort=-rss",
            complaint="memory",
        )
    else:
        yield ok("memory.daemon", text)


def _journal(scene: Scene) -> Iterator[Finding]:
    from ...supervision.wanted import KEEP_WHAT_WAITS

    doing(f"measuring the journal in {scene.state_dir}")
    nbytes = 0
    for part in ("", "-wal"):
        try:
            nbytes += os.path.getsize(os.path.join(scene.state_dir, f"journal.sqlite{part}"))
        except OSError:
            continue
    behind = [
        (int(sink.get("lag_records") or 0), run.name, str(sink.get("name")), sink.get("error"))
        for run in scene.runs
        for sink in run.sinks
        if sink.get("name") not in KEEP_WHAT_WAITS
    ]
    lag, run, sink, error = max(behind, default=(0, "", "", None))
    text = f"the journal has {size(nbytes)}"
    held = lag and (error or nbytes > _JOURNAL_BYTES)
    if held:
        yield warning(
            "memory.journal",
            f"{text}, and grows as long as {sink} of {run} is {wording.counted(lag, 'record')} "
            "behind: rows leave when every sink has written them"
            + (" (W&B's oldest are dropped above wandb_backlog_mb)" if sink == "wandb" else "")
            + (f". {sink}: {error}" if error else ""),
            f"sidestep doctor --run {quoted(run)}",
            complaint="memory",
            run=run,
        )
    elif nbytes:
        yield ok("memory.journal", text)


def _outboxes(scene: Scene) -> Iterator[Finding]:
    dead = [
        t
        for t in scene.trainers
        if not t["alive"] and not t["damaged"] and scene.now - float(t["changed_s"]) > _ELDER_S
    ]
    alive = scene.alive()
    if dead:
        nbytes = sum(int(t["bytes"]) for t in dead)
        runs = ", ".join(dict.fromkeys(str(t.get("run")) for t in dead))
        yield warning(
            "memory.outboxes",
            f"{_outboxes_of(len(dead))} ({size(nbytes)}) of dead trainers ({runs}) "
            "hold memory until they are written"
            + ("; the daemon has not taken them" if scene.lives else ": no daemon runs"),
            "sidestep drain",
            complaint="memory",
        )
    if alive:
        nbytes = sum(int(t["bytes"]) for t in alive)
        yield ok(
            "memory.trainers",
            f"outboxes of {wording.counted(len(alive), 'living trainer')}: {size(nbytes)}, which "
            "is all that they ever take",
        )


def _strangers(scene: Scene) -> Iterator[Finding]:
    if scene.paths is None:
        return
    from sidestep.proto.paths import outbox_dirs

    ours = outbox_dirs(scene.paths, scene.state_dir, scene.uid)[1]
    left = [one for one in scene.strangers if not one["alive"]]
    if not left:
        return
    left.sort(key=lambda one: -int(one["bytes"]))
    names = list(dict.fromkeys(run for one in left for run in one["runs"]))
    runs = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    from_all = " ".join(f"{quoted(one['folder'])}/*.outbox" for one in left[:_FOLDERS])
    rest = len(left) - _FOLDERS
    yield warning(
        "memory.shm",
        f"{_outboxes_of(sum(int(one['outboxes']) for one in left))} "
        f"({size(sum(int(one['bytes']) for one in left))}) of dead trainers ({runs}) lie in "
        f"{os.path.dirname(ours)}: they belong to other runtime directories, where no daemon has "
        "taken them. This has the daemon of this one write them"
        + (
            f" (those of the {_FOLDERS} largest folders; {rest} more have some)" if rest > 0 else ""
        ),
        f"mkdir -p -m 700 {quoted(ours)} && mv {from_all} {quoted(ours)}/ && sidestep drain",
        complaint="memory",
    )


def _outboxes_of(many: int) -> str:
    return f"{wording.count(many)} outbox{'' if many == 1 else 'es'}"

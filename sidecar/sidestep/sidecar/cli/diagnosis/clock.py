"""The wall clock: against what has been written with it, and whether it went back meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from .. import wording
from .event_tail import event_files, read_tail
from .finding import Finding, ok, warning
from .isolate import doing
from .machine import mounted
from .scene import Scene

_AHEAD_S: Final = 5.0
_BACK_S: Final = 5.0
_WINDOW_BYTES: Final = 128 << 10


def check(scene: Scene) -> Iterator[Finding]:
    """Compare this clock with files and events of the chosen runs."""
    found: list[Finding] = []
    for run in scene.chosen:
        if not run.has_events:
            continue
        doing(f"looking at the times in {run.event_folder}")
        files = event_files(run.event_folder)
        if not files:
            continue
        ahead_s = os.stat(files[-1]).st_mtime - scene.now
        if ahead_s > _AHEAD_S:
            kind, point = mounted(files[-1])
            found.append(
                warning(
                    "clock.files",
                    f"{run.name}: its event file was written {wording.duration(ahead_s)} in the "
                    f"future: this machine's clock was set back since, or the clock of {kind} at "
                    f"{point} is another one",
                    "timedatectl status",
                    run=run.name,
                )
            )
            continue
        tail = read_tail(run.event_folder, _WINDOW_BYTES)
        if tail.newest_s - scene.now > _AHEAD_S:
            ahead = wording.duration(tail.newest_s - scene.now)
            found.append(
                warning(
                    "clock.events",
                    f"{run.name}: its newest event is {ahead} in the future: the trainer's clock "
                    "is ahead of this machine's, or this one was set back",
                    "timedatectl status",
                    run=run.name,
                )
            )
        elif tail.late_s > _BACK_S:
            found.append(
                warning(
                    "clock.back",
                    f"{run.name}: the clock went back by {wording.duration(tail.late_s)} during "
                    "the run. Over time (WALL, RELATIVE) TensorBoard draws its curves over "
                    "themselves; over steps they are right",
                    "timedatectl status",
                    complaint="stops",
                    run=run.name,
                )
            )
    yield from found
    if not found:
        yield ok("clock", "agrees with what was written, and did not go back")

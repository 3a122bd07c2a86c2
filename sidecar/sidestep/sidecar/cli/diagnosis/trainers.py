"""Trainers and their records: stopped, dead, a full outbox, what was dropped and rejected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from .. import wording
from .curves import quoted
from .finding import Finding, note, ok, warning, wrong
from .scene import RunSeen, Scene

_NEARLY_FULL: Final = 0.9


def check(scene: Scene) -> Iterator[Finding]:
    """Look at each chosen run's trainers and books, and at trainers of no run that is known."""
    if scene.wanted and not scene.chosen:
        yield from _unknown_run(scene)
    chosen = {run.name for run in scene.chosen}
    found: list[Finding] = []
    for trainer in scene.alive():
        if trainer.get("run") in chosen or not (scene.wanted or scene.logdir):
            found += _trainer(scene, trainer)
    for run in scene.chosen:
        found += _state(run)
        found += _books(run)
    yield from found
    yield from _damaged(scene)
    if not found:
        alive = [t for t in scene.alive() if t.get("run") in chosen]
        total = sum(int(run.books.get("durable") or run.records) for run in scene.chosen)
        yield ok(
            "trainers",
            f"{wording.counted(len(scene.chosen), 'run')} looked at, "
            f"{wording.counted(len(alive), 'trainer')} living here, "
            f"{wording.counted(total, 'record')} durable, none dropped or rejected",
        )


def _unknown_run(scene: Scene) -> Iterator[Finding]:
    names = list(dict.fromkeys(run.name for run in reversed(scene.runs)))[:5]
    known = f"known are {', '.join(names)}" if names else "none is known at all"
    yield wrong(
        "trainers.run",
        f"there is no run {scene.wanted!r} in {scene.state_dir}: {known}",
        f"sidestep doctor --run {quoted(names[0])}" if names else "sidestep status",
        complaint="nothing",
    )


def _trainer(scene: Scene, trainer: Mapping[str, Any]) -> Iterator[Finding]:
    run, pid = str(trainer.get("run")), int(trainer.get("pid") or 0)
    process: Mapping[str, Any] = trainer.get("process") or {}
    if process.get("stopped"):
        yield wrong(
            "trainers.stopped",
            f"{run}: its trainer (pid {pid}) is stopped (SIGSTOP, Ctrl-Z or a debugger)",
            f"kill -CONT {pid}",
            complaint="stops",
            run=run,
        )
    full = float(trainer.get("fullness") or 0)
    if full >= _NEARLY_FULL:
        dropped = int(trainer["dropped"])
        why = "no daemon takes anything" if not scene.status else "the daemon does not keep up"
        yield wrong(
            "trainers.outbox",
            f"{run}: the outbox of its trainer (pid {pid}) is {full:.0%} full, since {why}; of "
            f"what comes now the oldest is dropped: {wording.counted(dropped, 'record')} so far",
            "sidestep status" if scene.status else "sidestep start",
            complaint="stops",
            run=run,
        )
    theirs = (process.get("environ") or {}).get("SIDESTEP_ENDPOINT")
    if theirs and not scene.status and not theirs.startswith("ipc://"):
        yield note(
            "trainers.elsewhere",
            f"{run}: its trainer (pid {pid}) delivers to {theirs}",
            f"SIDESTEP_ENDPOINT={quoted(theirs)} sidestep drain",
            run=run,
        )


def _state(run: RunSeen) -> Iterator[Finding]:
    if run.state == "lost":
        yield warning(
            "trainers.lost",
            f"{run.name}: its trainer vanished without a goodbye, at step "
            f"{wording.count(run.last_step)} or later; what it emitted is kept. Whether the "
            "kernel killed it for want of memory:",
            "dmesg -T | grep -i 'killed process'",
            complaint="stops",
            run=run.name,
        )


def _books(run: RunSeen) -> Iterator[Finding]:
    books, name = run.books, run.name
    if dropped := int(books.get("dropped") or 0):
        yield warning(
            "trainers.dropped",
            f"{name}: {wording.counted(dropped, 'record')} dropped: more came than the daemon took "
            "in time, and the outbox was full. Log less often, or give it more room: "
            "connect(outbox_bytes=256 << 20)",
            f"sidestep tail {quoted(name)} --tags 'sidestep/*'",
            complaint="stops",
            run=name,
        )
    if rejected := int(books.get("rejected") or 0):
        yield warning(
            "trainers.rejected",
            f"{name}: {wording.counted(rejected, 'value')} rejected: of a type or shape that is no "
            "value. The trainer's log names the first of each kind; for a traceback at the line, "
            "train with",
            "export SIDESTEP_STRICT=1",
            complaint="nothing",
            run=name,
        )
    unaccounted = int(books.get("unaccounted") or 0)
    if unaccounted > 0:
        yield warning(
            "trainers.unaccounted",
            f"{name}: {wording.counted(unaccounted, 'record')} were with a trainer that vanished, "
            "and so has its outbox",
            f"sidestep export {quoted(name)} --format csv",
            complaint="stops",
            run=name,
        )


def _damaged(scene: Scene) -> Iterator[Finding]:
    for trainer in scene.trainers:
        if trainer["damaged"] and not trainer["alive"]:
            yield warning(
                "trainers.damaged",
                f"the outbox {trainer['path']} could not be read to its end "
                f"({trainer['damaged']}); what was whole is written. When nobody needs the rest:",
                f"rm {quoted(str(trainer['path']))}",
                complaint="memory",
            )

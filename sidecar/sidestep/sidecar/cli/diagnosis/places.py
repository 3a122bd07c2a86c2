"""Directories and what is under them: who owns them, what file system, how much room is left."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Final

from sidestep.proto.paths import DEFAULT_LOG_DIR

from .. import wording
from .curves import quoted
from .finding import Finding, ok, warning, wrong
from .isolate import doing
from .machine import NETWORK, Place, look_at, size
from .scene import Scene

_NO_ROOM_BYTES: Final = 32 << 20
_LITTLE_ROOM_BYTES: Final = 512 << 20
_FEW_INODES: Final = 1000
_OUTBOX_BYTES: Final = 64 << 20
"""A trainer's, if it was not told otherwise; twice as much must be free."""

_SHARED: Final = "/dev/shm"  # noqa: S108 - looked at, not written to


def runtime(scene: Scene) -> Iterator[Finding]:
    """The runtime directory, with sockets and locks."""
    if scene.paths is None:
        return  # said already
    path = scene.paths.directory
    doing(f"looking at {path}")
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        yield from _room("places.runtime", look_at(path), "the runtime directory", small=True)
        return
    if found.st_uid != scene.uid:
        yield wrong(
            "places.runtime",
            f"the runtime directory {path} belongs to user {found.st_uid}: no daemon of yours "
            "starts there",
            f"export SIDESTEP_RUNTIME_DIR=/tmp/sidestep-{scene.uid}-own",
            complaint="nothing",
        )
    elif stat.S_IMODE(found.st_mode) & 0o077:
        yield warning(
            "places.runtime",
            f"the runtime directory {path} is open to others (mode "
            f"{stat.S_IMODE(found.st_mode):04o})",
            f"chmod 700 {quoted(path)}",
        )
    else:
        yield from _room("places.runtime", look_at(path), "the runtime directory", small=True)


def state(scene: Scene) -> Iterator[Finding]:
    """The state directory, with the journal."""
    path = scene.state_dir
    doing(f"looking at {path}")
    place = look_at(path)
    if place.kind in NETWORK:
        yield wrong(
            "places.state",
            f"the state directory {path} is on {place.kind} ({place.point}), where a journal can "
            "be damaged and can hang: it belongs on a local disk",
            f"export SIDESTEP_STATE_DIR=/var/tmp/sidestep-{scene.uid}",
            complaint="stops",
        )
    yield from _room("places.state", place, "the state directory")


def logs(scene: Scene) -> Iterator[Finding]:
    """The log directories of the runs, or where the next one would log."""
    paths = dict.fromkeys(r.log_dir for r in scene.chosen if r.log_dir and not r.goes_to)
    if not paths:
        default = scene.environ.get("SIDESTEP_LOG_DIR") or DEFAULT_LOG_DIR
        paths = {scene.logdir or os.path.join(scene.cwd, default): None}
    for path in paths:
        doing(f"looking at {path}")
        yield from _room("places.logs", look_at(path), "the log directory", complaint="nothing")


def shared_memory(_scene: Scene) -> Iterator[Finding]:
    """Where trainers keep what they have not delivered yet."""
    doing(f"looking at {_SHARED}")
    if not os.path.isdir(_SHARED):
        yield warning(
            "places.shm",
            f"there is no {_SHARED}: trainers keep their outboxes on the disk, which may stall",
            f"mount -t tmpfs -o size=1G tmpfs {_SHARED}",
        )
        return
    place = look_at(_SHARED)
    if not place.writable:
        yield warning(
            "places.shm",
            f"{_SHARED} cannot be written: trainers keep their outboxes on the disk, which may "
            "stall",
            f"chmod 1777 {_SHARED}",
        )
    elif place.total_bytes and place.free_bytes < 2 * _OUTBOX_BYTES:
        yield warning(
            "places.shm",
            f"{size(place.free_bytes)} of {size(place.total_bytes)} are free in {_SHARED}, and an "
            f"outbox takes {size(_OUTBOX_BYTES)} where twice that is free: the next trainer keeps "
            "its own on the disk. In a container: --shm-size=1g",
            f"mount -o remount,size=1G {_SHARED}",
            complaint="memory",
        )
    else:
        yield ok("places.shm", f"{_SHARED}: {size(place.free_bytes)} free for outboxes")


def _room(
    check: str, place: Place, what: str, *, small: bool = False, complaint: str = "stops"
) -> Iterator[Finding]:
    name = f"{what} {place.path}"
    if not place.writable:
        why = "cannot be written" if place.exists else f"cannot be made in {place.nearest}"
        is_folder = os.path.isdir(place.nearest)
        yield wrong(
            check,
            f"{name} {why}"
            + ("" if is_folder else f": {place.nearest} is no directory")
            + (f" (on {place.kind} at {place.point})" if place.kind else ""),
            f"chmod u+rwx {quoted(place.nearest)}" if is_folder else f"ls -la {place.nearest}",
            complaint=complaint,
        )
        return
    room = f"{size(place.free_bytes)} free"
    of = f"{place.kind} at {place.point}" if place.kind else "an unknown file system"
    limit = _NO_ROOM_BYTES // 16 if small else _NO_ROOM_BYTES
    command = f"du -xh -d 1 {quoted(place.point or place.nearest)} | sort -h | tail"
    if place.total_bytes and place.free_bytes < min(limit, place.total_bytes // 3):
        yield wrong(check, f"{name} is full: {room} ({of})", command, complaint="stops")
    elif place.free_inodes is not None and place.free_inodes < _FEW_INODES:
        yield wrong(
            check,
            f"{name} has room for {wording.count(place.free_inodes)} more files ({of})",
            f"du --inodes -x -d 1 {quoted(place.point)} | sort -n | tail",
            complaint="stops",
        )
    elif place.total_bytes and not small and place.free_bytes < _LITTLE_ROOM_BYTES:
        yield warning(check, f"{name} will soon be full: {room} ({of})", command, complaint="stops")
    elif not place.exists:
        yield ok(check, f"{name} is not there yet; it can be made ({room}, {of})")
    else:
        yield ok(check, f"{name}: {room} ({of})")

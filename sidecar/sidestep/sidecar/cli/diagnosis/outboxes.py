"""Looks at trainers' outboxes from outside: who wrote one, whether it lives, how full it is.

Nothing is locked: the kernel is asked who holds the lock. So neither a trainer nor the daemon that
would adopt its outbox ever notices.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from typing import Any, Final

from sidestep.proto import Gap, RemoteProtocolError
from sidestep.proto.limits import MAX_SEQ
from sidestep.proto.paths import OUTBOX_SUFFIX
from sidestep.proto.segments import FINISHED, FREE, LOST, REJECTED, Outbox

from ...ingest.adopt import DAMAGED_SUFFIX
from . import machine

_LOCK: Final = struct.Struct("hhqqi4x")
"""The kernel's `struct flock`: type, whence, start, length, pid."""

_ENTRY_WORDS: Final = 4
_NEARLY_FULL: Final = 0.85
_READING_S: Final = 0.5


def look_into(folder: str) -> list[dict[str, Any]]:
    """The outboxes in a folder; none when there is no such folder.

    Returns:
        For each `path`, `bytes`, `changed_s`, `alive` (somebody holds its lock), `damaged` (why it
        cannot be read, ""), and of one that can be read `run`, `log_dir`, `rank`, `pid`, `host`,
        `devices` (UUIDs), `acked` and `dropped` (records, at least), `rejected` (values),
        `fullness` (0 to 1), `finished`, `wandb`, and `process`: what the kernel says of one that
        lives.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for name in names:
        path = os.path.join(folder, name)
        try:
            if name.endswith(OUTBOX_SUFFIX):
                found.append(_look_at(path))
            elif name.endswith(OUTBOX_SUFFIX + DAMAGED_SUFFIX):
                found.append(_damaged(path, os.stat(path), "it was put aside by the daemon"))
        except OSError:
            continue  # it was delivered meanwhile
    return found


def _look_at(path: str) -> dict[str, Any]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        about = os.fstat(fd)
        query = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind = _LOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, query))[0]
        alive = kind != fcntl.F_UNLCK
        try:
            memory = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
            outbox = Outbox.attach(memoryview(memory))
            return {**_read(outbox), **_file(path, about, alive)} | _process(outbox, alive)
        except (RemoteProtocolError, ValueError) as error:
            return {**_damaged(path, about, str(error)), "alive": alive}
    finally:
        os.close(fd)


def _file(path: str, about: os.stat_result, alive: bool) -> dict[str, Any]:
    return {
        "path": path,
        "bytes": about.st_size,
        "changed_s": about.st_mtime,
        "alive": alive,
        "damaged": "",
    }


def _damaged(path: str, about: os.stat_result, why: str) -> dict[str, Any]:
    return {**_file(path, about, alive=False), "damaged": why, "run": "", "dropped": 0}


def _read(outbox: Outbox) -> dict[str, Any]:
    hello, words = outbox.hello(), outbox.words
    states = outbox.table[::_ENTRY_WORDS].tolist()
    taken = sum(state != FREE for state in states)
    fullness = taken / max(1, len(states))
    gone = _missing(outbox) if fullness > _NEARLY_FULL else 0
    return {
        "run": hello.run.name,
        "log_dir": hello.run.log_dir,
        "wandb": hello.run.wandb is not None,
        "rank": hello.rank,
        "pid": hello.pid,
        "host": hello.host,
        "versions": [hello.min_version, hello.max_version],
        "devices": list(hello.device_uuids),
        "acked": hello.acked_seq,
        "dropped": hello.acked_dropped + min(gone + words[LOST], MAX_SEQ),
        "rejected": min(words[REJECTED], MAX_SEQ),
        "fullness": fullness,
        "finished": bool(words[FINISHED]),
    }


def _missing(outbox: Outbox) -> int:
    """Records that were pushed out of a full outbox: their numbers are missing between others."""
    gone, give_up = 0, time.monotonic() + _READING_S
    try:
        for message in outbox.messages():
            if isinstance(message, Gap):
                gone += message.last_seq - message.first_seq + 1
            if time.monotonic() > give_up:
                break
    except (RemoteProtocolError, ValueError, struct.error):
        pass  # its trainer writes on while it is read
    return gone


def _process(outbox: Outbox, alive: bool) -> dict[str, Any]:
    return {"process": machine.describe_process(outbox.hello().pid) if alive else {}}

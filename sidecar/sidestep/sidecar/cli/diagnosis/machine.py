"""What the kernel says of processes and of the file systems under a path; nothing is changed."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psutil

NETWORK: Final = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs"),
        *("glusterfs", "orangefs", "panfs", "fuse.cephfs", "fuse.gcsfuse", "fuse.glusterfs"),
        *("fuse.juicefs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"),
    }
)
"""File systems that other machines write to, too: where SQLite's log does not work."""

HIDDEN: Final = "***"

_OF_INTEREST: Final = ("SIDESTEP_", "WANDB_", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE", "HOME")
_SECRET: Final = re.compile("API_KEY|TOKEN|SECRET|PASSWORD|WEBHOOK")
"""Names of variables that hold what nobody else may see."""


def environment_of(pid: int) -> dict[str, str] | None:
    """What of a process's environment matters here; None when it may not be read.

    A secret is there as `HIDDEN`, so that nothing can print it.
    """
    try:
        found = psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return None
    return of_interest(found)


def of_interest(environ: Mapping[str, str]) -> dict[str, str]:
    """The same of any environment."""
    return {
        name: HIDDEN if value and _SECRET.search(name) else value
        for name, value in environ.items()
        if name.startswith(_OF_INTEREST)
    }


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped (SIGSTOP, Ctrl-Z, a debugger)."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except (psutil.Error, OSError):
        return False


def is_there(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


def is_runnable(pid: int) -> bool:
    """Whether a process is on a CPU, or would be if there were one for it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_RUNNING
    except (psutil.Error, OSError):
        return False


def cpu_s(pid: int) -> float:
    """Seconds that a process has spent on a CPU; 0 when it cannot be told."""
    try:
        times = psutil.Process(pid).cpu_times()
    except (psutil.Error, OSError):
        return 0.0
    return times.user + times.system


def describe_process(pid: int) -> dict[str, Any]:
    """What can be said of a process from outside, of what is its own."""
    found: dict[str, Any] = {"there": is_there(pid), "stopped": is_stopped(pid)}
    found["environ"] = environment_of(pid)
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            found["memory_bytes"] = process.memory_info().rss
            found["started_s"] = process.create_time()
            found["open_files"] = process.num_fds()
            found["command"] = process.cmdline()
        found["files_limit"] = process.rlimit(resource.RLIMIT_NOFILE)[0]
    except (psutil.Error, OSError):
        pass
    return found


@dataclass(frozen=True, slots=True)
class Place:
    """The file system under a path.

    Attributes:
        path: what was asked for.
        nearest: the nearest part of it that exists.
        exists: whether that is all of it.
        writable: whether this user can write there, now.
        kind: the file system's type, "" when unknown.
        point: where it is mounted.
        total_bytes: its size; 0 when it has none.
        free_bytes: for this user.
        free_inodes: None where there are none to be counted.
    """

    path: str
    nearest: str
    exists: bool
    writable: bool
    kind: str
    point: str
    total_bytes: int
    free_bytes: int
    free_inodes: int | None


def look_at(path: str) -> Place:
    """Look at the file system under `path`, or under what of it exists. May hang with its server.

    Raises:
        OSError: it does not answer.
    """
    nearest = path
    while not os.path.lexists(nearest) and nearest != os.path.dirname(nearest):
        nearest = os.path.dirname(nearest)
    room = os.statvfs(nearest)
    kind, point = mounted(nearest)
    return Place(
        path,
        nearest,
        nearest == path,
        os.path.isdir(nearest) and os.access(nearest, os.W_OK | os.X_OK),
        kind,
        point,
        room.f_blocks * room.f_frsize,
        room.f_bavail * room.f_frsize,
        room.f_favail if room.f_files else None,
    )


def mounted(path: str) -> tuple[str, str]:
    """Type and mount point of the file system that `path` is on."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        mounts = [line.split() for line in lines]
    real = os.path.realpath(path)
    kind, best = "", ""
    for fields in mounts:
        point = fields[4].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[fields.index("-") + 1]
    return kind, best


def size(nbytes: float) -> str:
    """Bytes in the unit in which they have few digits."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= one:
            return f"{nbytes / one:.3g} {unit}"
    return f"{nbytes:.0f} bytes"

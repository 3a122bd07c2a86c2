"""The memory of an outbox: a file on tmpfs, else on disk, else private memory.

The file is reserved in full when it is created, because a sparse file on a full tmpfs kills the
process at its next store. It is made only where as much stays free as it takes: others (the
DataLoader's workers) live in the same shared memory. A file on a disk is second best: the kernel
writes its pages back and can make a store wait for that. A client is alive while it holds the
POSIX record lock on its file; a fork does not inherit that lock, and the kernel drops it whatever
the process dies of.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from sidestep.proto import Hello
from sidestep.proto.paths import OUTBOX_SUFFIX
from sidestep.proto.segments import Outbox

logger = logging.getLogger("sidestep")

_MEMORY_FILESYSTEMS: Final = frozenset({"tmpfs", "ramfs"})
_DRAFT_SUFFIX: Final = ".new"
_DRAFT_S: Final = 60.0
"""A draft is older than that only if its client was killed while it made it."""


@dataclass(slots=True)
class OutboxMemory:
    """An outbox's memory with the file behind it, if there is one.

    Attributes:
        layout: the outbox over that memory.
        path: the file, or "" for private memory.
    """

    layout: Outbox
    path: str
    _map: mmap.mmap
    _fd: int

    def close(self, delete: bool) -> None:
        """Unmap, and give up the lock: the file is for a daemon now, unless `delete`."""
        if delete and self.path:
            _unlink(self.path)
        try:
            self._map.close()
        except BufferError:
            pass  # somebody still looks at it; the process's end will unmap it
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def create(
    directories: Iterable[str], nbytes: int, hello: Hello, *, adoptable: bool = True
) -> OutboxMemory:
    """Make an outbox of `nbytes`, in the first of `directories` that can hold it.

    Args:
        directories: in the order of preference; those on memory are tried first, the last one
            wherever it is.
        nbytes: size of the whole file.
        hello: who the client is; the outbox's path is filled in.
        adoptable: whether the client's daemon looks into `directories`; if not, it is not told.

    Raises:
        LocalProtocolError: `nbytes` is too small for what `hello` says.
        OSError: there is not even so much private memory.
    """
    causes: list[str] = []
    wanted = list(directories)
    on_memory = [d for d in wanted if is_memory(d)]
    for directory in dict.fromkeys([*on_memory, *wanted[-1:]]):
        try:
            return _create_file(directory, nbytes, hello, adoptable)
        except OSError as error:
            causes.append(f"{directory}: {error.strerror or error}")
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    layout = Outbox.create(memoryview(memory), hello)
    logger.warning(
        "sidestep keeps its outbox in private memory: metrics that are under way are lost if "
        "this process is killed. Tried %s",
        "; ".join(causes),
    )
    return OutboxMemory(layout, "", memory, -1)


def is_memory(directory: str) -> bool:
    """Whether `directory` is, or would be made, on a file system in memory."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            mounts = [line.split() for line in lines]
    except OSError:
        return False
    path = os.path.realpath(directory)
    best, kind = "", ""
    for fields in mounts:
        point = fields[4].replace("\\040", " ")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[fields.index("-") + 1]
    return kind in _MEMORY_FILESYSTEMS


def make_private(directory: str) -> None:
    """Make `directory` with mode 0700, or see that it is so and ours.

    Raises:
        PermissionError: somebody else owns it, or could put another one in its place.
        OSError: it cannot be made.
    """
    os.makedirs(os.path.dirname(directory), mode=0o700, exist_ok=True)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it is not a directory of this user's", directory)
    if found.st_mode & 0o077:
        os.chmod(directory, 0o700)
    path = directory
    while (parent := os.path.dirname(path)) != path:
        # In a folder where everybody may write, somebody may have come before us.
        writable = os.stat(parent).st_mode & stat.S_IWOTH
        if writable and os.lstat(path).st_uid not in (0, os.geteuid()):
            raise PermissionError(errno.EPERM, f"{path} belongs to somebody else", path)
        path = parent


def _create_file(directory: str, nbytes: int, hello: Hello, adoptable: bool) -> OutboxMemory:
    make_private(directory)
    _remove_old_drafts(directory)
    room = os.statvfs(directory)
    if room.f_blocks and 2 * nbytes > room.f_bavail * room.f_frsize:  # none: it has no limit
        raise OSError(errno.ENOSPC, f"{nbytes} bytes are more than half of what is free")
    path = os.path.join(directory, hello.uuid.hex() + OUTBOX_SUFFIX)
    # Under another name until it is locked and laid out: a daemon adopts what is not locked.
    draft = path + _DRAFT_SUFFIX
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(draft, flags, 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.posix_fallocate(fd, 0, nbytes)
        # Populated at once, so that no later store pays for a page.
        memory = mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        told = replace(hello, outbox=path) if adoptable else hello
        layout = Outbox.create(memoryview(memory), told)
        os.rename(draft, path)
    except BaseException:
        _unlink(draft)
        os.close(fd)
        raise
    return OutboxMemory(layout, path, memory, fd)


def _remove_old_drafts(directory: str) -> None:
    """Give back the memory of clients that were killed while they made their outbox."""
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        try:
            if name.endswith(_DRAFT_SUFFIX) and time.time() - os.lstat(path).st_mtime > _DRAFT_S:
                os.unlink(path)
        except OSError:
            pass  # somebody else was at it


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass

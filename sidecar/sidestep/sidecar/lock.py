"""The daemon's lock: one daemon in a runtime directory, known to all by the lock's text."""

from __future__ import annotations

import fcntl
import json
import os
import time
from typing import Any, cast

from sidestep.proto import SidestepError
from sidestep.proto.paths import RuntimePaths

_PROBE_S = 0.5
"""Clients look whether the lock is held by taking it for a moment: so long we try again."""


class AlreadyRunningError(SidestepError):
    """Another daemon holds the lock.

    Attributes:
        pid: its process id, or 0 when it has not said it yet.
    """

    def __init__(self, pid: int, directory: str) -> None:
        super().__init__(
            f"a daemon runs already (pid {pid or 'unknown'}) in {directory}. `sidestep status` "
            "shows it, `sidestep stop` ends it"
        )
        self.pid = pid


class DaemonLock:
    """Held while the process lives; the kernel drops it whatever the process dies of.

    Raises:
        AlreadyRunningError: another daemon holds it.
    """

    def __init__(self, paths: RuntimePaths) -> None:
        make_private(paths.directory)
        self._fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        deadline = time.monotonic() + _PROBE_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # What stands there is the name of somebody who is dead.
                self.announce({"pid": os.getpid()})
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(self._fd)
                    raise AlreadyRunningError(_holder(paths), paths.directory) from None
                time.sleep(0.01)

    def announce(self, info: dict[str, Any]) -> None:
        """Say who holds it."""
        text = json.dumps(info).encode()
        # In this order, so that nobody reads an empty text; spaces hide what was longer before.
        os.pwrite(self._fd, text.ljust(os.fstat(self._fd).st_size), 0)
        os.ftruncate(self._fd, len(text))

    def release(self) -> None:
        """Let go."""
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def _holder(paths: RuntimePaths) -> int:
    try:
        with open(paths.lock, encoding="utf-8") as file:
            return int(cast("dict[str, Any]", json.load(file))["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def make_private(directory: str) -> None:
    """Make a runtime directory with mode 0700, or see that it is ours.

    Raises:
        SidestepError: it belongs to somebody else.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    found = os.lstat(directory)
    if found.st_uid != os.geteuid():
        raise SidestepError(
            f"the runtime directory {directory!r} belongs to user {found.st_uid}: set "
            "SIDESTEP_RUNTIME_DIR to a directory of your own"
        )
    if found.st_mode & 0o077:
        os.chmod(directory, 0o700)


def held(directory: str) -> bool:
    """Whether any file in `directory` is locked (flock): somebody wants the daemon to stay."""
    try:
        names = os.listdir(directory)
    except OSError:
        return False
    for name in names:
        path = os.path.join(directory, name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)  # whoever held it has gone
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
    return False

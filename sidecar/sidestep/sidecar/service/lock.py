"""The daemon's locks: one daemon in a runtime directory, known to all by the lock's text."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from typing import Any, cast

from sidestep.proto import SidestepError
from sidestep.proto.paths import MAX_SOCKET_PATH_BYTES, RuntimePaths

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


class _Lock:
    """A file's lock (flock) with a text that says who holds it.

    It is held while the process lives: the kernel drops it whatever the process dies of.

    Raises:
        BlockingIOError: somebody else holds it.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        deadline = time.monotonic() + _PROBE_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(self._fd)
                    raise
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


class DaemonLock(_Lock):
    """The lock of a runtime directory.

    Raises:
        AlreadyRunningError: another daemon holds it.
    """

    def __init__(self, paths: RuntimePaths) -> None:
        make_private(paths.directory)
        try:
            super().__init__(paths.lock)
        except BlockingIOError:
            pid = int(_holder(paths.lock).get("pid") or 0)
            raise AlreadyRunningError(pid, paths.directory) from None
        # What stands there is the name of somebody who is dead.
        self.announce({"pid": os.getpid()})


class PlaceLock(_Lock):
    """The lock of something else that daemons of different runtime directories must not share.

    Two on one journal would write everything twice; the second to bind a socket's path takes it
    away from the first, which never hears of it.

    Args:
        path: the lock's file.
        place: what it guards, in words.
        runtime_dir: this daemon's runtime directory.

    Raises:
        SidestepError: the daemon of another runtime directory holds it.
    """

    def __init__(self, path: str, place: str, runtime_dir: str) -> None:
        try:
            super().__init__(path)
        except BlockingIOError:
            who = _holder(path)
            raise SidestepError(
                f"{place} is in use by another daemon (pid {who.get('pid', 'unknown')} on "
                f"{who.get('host', 'an unknown host')}, with the runtime directory "
                f"{who.get('runtime_dir', 'unknown')}). To share that daemon, set "
                "SIDESTEP_RUNTIME_DIR to its directory; to have two, give each its own"
            ) from None
        self.announce(
            {"pid": os.getpid(), "host": socket.gethostname(), "runtime_dir": runtime_dir}
        )


def lock_places(state_dir: str, endpoint: str | None, paths: RuntimePaths) -> list[PlaceLock]:
    """Lock what a daemon works with outside of its runtime directory.

    Args:
        state_dir: where its journal is; exists.
        endpoint: the further address at which it listens, if any.
        paths: its runtime directory.

    Raises:
        SidestepError: another daemon uses one of them, or the address cannot be one.
    """
    guarded = [(os.path.join(state_dir, "daemon.lock"), f"the state directory {state_dir!r}")]
    if endpoint and endpoint.startswith("ipc://") and endpoint != paths.data_endpoint:
        path = endpoint.removeprefix("ipc://")
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise SidestepError(
                f"endpoint {endpoint!r} is too long: the kernel takes {MAX_SOCKET_PATH_BYTES} "
                f"bytes for a socket's path, this one has {len(os.fsencode(path))}. Use a shorter "
                "path"
            )
        if _somebody_listens(path):
            raise SidestepError(
                f"another process listens at the endpoint {endpoint!r} already. Set "
                "SIDESTEP_ENDPOINT (or `endpoint` in the configuration) to a path of this daemon's "
                f"own; its clients find it without one, in {paths.directory}"
            )
        guarded.append((f"{path}.lock", f"the endpoint {endpoint!r}"))
    return [PlaceLock(path, place, paths.directory) for path, place in guarded]


def _somebody_listens(path: str) -> bool:
    """Whether the socket at `path` is more than what a dead process left behind."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # it has more callers than it can take
        except OSError:
            return False
    return True


def _holder(path: str) -> dict[str, Any]:
    """What the lock's holder has said of itself."""
    try:
        with open(path, encoding="utf-8") as file:
            found: Any = json.load(file)
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


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

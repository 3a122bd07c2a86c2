"""Finds the node's daemon, or starts one: detached, once however many clients ask."""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Mapping

from sidestep.proto.paths import RuntimePaths

from .outbox_file import make_private

logger = logging.getLogger("sidestep")

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0
_NEEDED = ("typer", "psutil", "pydantic_settings", "numpy")
_MISSING = (
    "sidestep: metrics are kept in the outbox, since no daemon runs here and none can be started:"
    " the daemon's packages are missing. Run: pip install 'sidestep[sidecar]'"
)


def daemon_is_running(paths: RuntimePaths) -> bool:
    """Whether a daemon holds the lock of this runtime directory."""
    return _is_locked(paths.lock)


class Launcher:
    """Starts a daemon when there is none; every failure is logged once and tried again later.

    Args:
        paths: where the daemon is to be.
        environ: the environment it gets.
    """

    def __init__(self, paths: RuntimePaths, environ: Mapping[str, str]) -> None:
        self._paths = paths
        self._environ = dict(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._retry_s = _FIRST_RETRY_S
        self._not_before = 0.0
        self._warned = False

    def ensure(self, now: float) -> None:
        """Start a daemon if none is there and none is being started. Never raises.

        The first time it always does; later, when a daemon has gone, not if a user stopped it.
        """
        if now < self._not_before or (self._not_before and os.path.exists(self._paths.stopped)):
            return
        self._not_before = now + self._retry_s
        try:
            self._reap()
            if self._process is None and not daemon_is_running(self._paths):
                self._start()
        except OSError as error:
            self._warn("sidestep: cannot start the daemon: %s", error)

    def _start(self) -> None:
        if any(importlib.util.find_spec(name) is None for name in _NEEDED):
            self._warn(_MISSING)
            return
        make_private(self._paths.directory)
        with open(self._paths.launch_lock, "ab") as launch_lock:
            try:
                fcntl.flock(launch_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # somebody else is at it
            if daemon_is_running(self._paths):
                return
            with open(self._paths.log, "ab") as log:
                # The launch lock goes with the daemon, which drops it once it is ready.
                self._process = subprocess.Popen(
                    # -P: a module in the trainer's directory must not shadow the daemon's.
                    [sys.executable, "-P", "-m", "sidestep.sidecar", "serve"]
                    + ["--leave-when-idle", "--launch-lock-fd", str(launch_lock.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environ,
                    pass_fds=(launch_lock.fileno(),),
                    start_new_session=True,
                )
        self._retry_s = min(_LAST_RETRY_S, self._retry_s * 2)

    def _reap(self) -> None:
        """Take note of a daemon that we started and that has ended."""
        if self._process is None:
            return
        code = self._process.poll()
        if code is None:
            return
        if code != 0:
            self._warn(
                "sidestep: the daemon ended with code %s; its last words are in %s. Metrics wait "
                "in the outbox",
                code,
                self._paths.log,
            )
        self._process = None

    def connected(self) -> None:
        """A daemon answered: the next failure is a new one."""
        self._retry_s = _FIRST_RETRY_S

    def forget(self) -> None:
        """Stop caring for a daemon that was started: it lives on without us."""
        if self._process is not None:
            self._process.poll()
            # It is not ours to wait for; without this its object would complain.
            self._process.returncode = self._process.returncode or 0
            self._process = None

    def _warn(self, message: str, *args: object) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(message, *args)


def _is_locked(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False

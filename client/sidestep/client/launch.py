"""Finds the node's daemon, or starts one: detached, once however many clients ask."""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from sidestep.proto.paths import RuntimePaths

from .outbox_file import make_private

logger = logging.getLogger("sidestep")

_FIRST_RETRY_S: Final = 1.0
_LAST_RETRY_S: Final = 30.0
_SHELL_S: Final = 10.0
_NEEDED: Final = ("typer", "psutil", "pydantic_settings", "numpy")
_MISSING: Final = (
    "sidestep: metrics are kept in the outbox, since no daemon runs here and none can be started:"
    " the daemon's packages are missing. Run: pip install 'sidestep[sidecar]'"
)
_DETACHED: Final = ("/bin/sh", "-c", '"$@" &', "sh")
"""The shell ends at once, so that the daemon is nobody's child: no zombie in the trainer, and out
of reach of launchers that kill a failed trainer's children before they have delivered."""


def daemon_is_running(paths: RuntimePaths) -> bool:
    """Whether a daemon holds the lock of this runtime directory."""
    try:
        fd = os.open(paths.lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class Launcher:
    """Starts a daemon when there is none; every failure is logged once and tried again later.

    Args:
        paths: where the daemon is to be.
        environ: the environment it gets.
    """

    def __init__(self, paths: RuntimePaths, environ: Mapping[str, str]) -> None:
        self._paths = paths
        self._environ = dict(environ)
        self._retry_s = _FIRST_RETRY_S
        self._not_before = 0.0
        self._unanswered = False
        self._warned = False

    def ensure(self, now: float) -> None:
        """Start a daemon if none is there and none is being started. Never raises.

        The first time it always does; later, when a daemon has gone, not if a user stopped it.
        """
        if now < self._not_before or (self._not_before and os.path.exists(self._paths.stopped)):
            return
        self._not_before = now + self._retry_s
        try:
            if not daemon_is_running(self._paths):
                self._start()
        except Exception as error:  # noqa: BLE001 - records wait in the outbox, whatever it is
            self._warn("sidestep: cannot start the daemon: %s", error)

    def connected(self) -> None:
        """A daemon answered: the next failure is a new one."""
        self._retry_s = _FIRST_RETRY_S
        self._unanswered = self._warned = False

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
            if self._unanswered:
                self._warn(
                    "sidestep: the daemon that was started has ended; its last words are in %s. "
                    "Metrics wait in the outbox",
                    self._paths.log,
                )
            with open(self._paths.log, "ab") as log:
                # The launch lock goes with the daemon, which drops it once it is ready.
                fd = launch_lock.fileno()
                subprocess.run(
                    # -P: a module in the trainer's directory must not shadow the daemon's.
                    [*_DETACHED, sys.executable, "-P", "-m", "sidestep.sidecar", "serve"]
                    + ["--leave-when-idle", "--launch-lock-fd", str(fd)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environ,
                    pass_fds=(fd,),
                    start_new_session=True,
                    timeout=_SHELL_S,
                    check=False,
                )
        self._unanswered = True
        self._retry_s = min(_LAST_RETRY_S, self._retry_s * 2)

    def _warn(self, message: str, *args: object) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(message, *args)

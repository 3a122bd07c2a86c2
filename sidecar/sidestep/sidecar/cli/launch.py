"""Starts the daemon in the background, once however many ask, and waits until it is ready."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from sidestep.proto.paths import RuntimePaths

from ..service.lock import make_private
from .common import CommandError
from .control_client import Control, DaemonInfo, NoAnswerError, NoDaemonError, parse_info

_READY_S: Final = 20.0
_LOG_TAIL_BYTES: Final = 2000


def ensure_daemon(
    paths: RuntimePaths, config: str | None, *, leave_when_idle: bool
) -> tuple[DaemonInfo, bool]:
    """The daemon of this runtime directory, started if there is none.

    Args:
        paths: the runtime directory.
        config: the configuration file, if any.
        leave_when_idle: whether a daemon that is started here leaves after its last client.

    Returns:
        Who it is, and whether it was started now.

    Raises:
        CommandError: it did not start; says what its log said.
    """
    control = Control(paths)
    make_private(paths.directory)
    with open(paths.launch_lock, "ab") as launch_lock:
        deadline = time.monotonic() + _READY_S
        while True:
            info = control.daemon()
            if info is not None:
                return _await_ready(control, None, deadline), False
            try:
                fcntl.flock(launch_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Somebody else is starting it just now.
                if time.monotonic() > deadline:
                    raise CommandError(f"another process holds {paths.launch_lock}") from None
                time.sleep(0.02)
        process = _spawn(paths, config, leave_when_idle, launch_lock.fileno())
    return _await_ready(control, process, deadline), True


def _spawn(
    paths: RuntimePaths, config: str | None, leave_when_idle: bool, lock_fd: int
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "sidestep.sidecar", "serve"]
    command += ["--launch-lock-fd", str(lock_fd)]
    command += ["--leave-when-idle"] if leave_when_idle else []
    command += ["--config", config] if config else []
    with open(paths.log, "ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock_fd,),
            start_new_session=True,
        )


def _await_ready(
    control: Control, process: subprocess.Popen[bytes] | None, deadline: float
) -> DaemonInfo:
    while time.monotonic() < deadline:
        try:
            info = parse_info(json.dumps(control.request("hello", 1.0)).encode())
            if process is not None:
                process.returncode = 0  # it lives on without us; nobody is to wait for it
            return info
        except NoDaemonError:
            if process is not None and process.poll() is not None:
                raise CommandError(
                    f"the daemon did not start (code {process.returncode}):\n{_log_tail(control)}"
                ) from None
        except NoAnswerError:
            pass
        time.sleep(0.01)
    raise CommandError(
        f"the daemon is not ready after {_READY_S:g} s; `sidestep doctor` looks for the cause. Its "
        f"log ends with:\n{_log_tail(control)}"
    )


def _log_tail(control: Control) -> str:
    try:
        with open(control.paths.log, "rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _LOG_TAIL_BYTES))
            return log.read().decode("utf-8", "replace").strip()
    except OSError as error:
        return f"its log {control.paths.log} cannot be read: {error}"


@contextmanager
def hold(paths: RuntimePaths) -> Generator[None]:
    """Keep the daemon from leaving while this lasts, however this process ends."""
    make_private(paths.holders)
    path = os.path.join(paths.holders, str(os.getpid()))
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.unlink(path)

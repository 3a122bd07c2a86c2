"""`sidestep serve`: the daemon in the foreground."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

from .common import CommandError, environment_paths
from .options import ConfigOption


def serve(
    config: ConfigOption = None,
    leave_when_idle: Annotated[bool, typer.Option("--leave-when-idle", hidden=True)] = False,
    launch_lock_fd: Annotated[int | None, typer.Option("--launch-lock-fd", hidden=True)] = None,
) -> None:
    """Run the daemon in the foreground, until SIGTERM or Ctrl-C.

    Prints one line when it is ready. The first signal lets it write what is journalled, and exit
    with 0; the second ends it at once, and the next daemon goes on where it stood.
    """
    import sqlite3

    import zmq

    from sidestep.proto import SidestepError

    from ..config import load
    from ..daemon import Daemon
    from ..service.service_manager import ServiceManager
    from ..service.terminal import make_printing_harmless

    make_printing_harmless()
    paths = environment_paths()
    settings = load(config, os.environ)
    # A daemon in the background is nobody's service: a manager that is named here is its trainer's.
    manager = ServiceManager(os.environ if launch_lock_fd is None else {}, _log)
    try:
        daemon = Daemon(
            paths,
            settings,
            leave_when_idle=leave_when_idle,
            version=_version(),
            log=_log,
            manager=manager,
        )
        daemon.start()
    except (OSError, sqlite3.Error, zmq.ZMQError) as error:
        raise CommandError(
            f"the daemon cannot start: {error} (runtime directory {paths.directory}, state "
            f"directory {settings.state_dir})"
        ) from error
    except SidestepError as error:
        raise CommandError(str(error)) from error
    if launch_lock_fd is not None:
        os.close(launch_lock_fd)  # whoever waited to start a daemon can see this one now
    _log(f"sidestep is ready: pid {os.getpid()}, {paths.data_endpoint}")
    daemon.serve()


def _log(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sidestep")
    except PackageNotFoundError:
        return "0+source"

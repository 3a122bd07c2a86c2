"""`sidestep start`: starts the daemon in the background and returns when it is ready."""

from __future__ import annotations

from .common import environment_paths
from .launch import ensure_daemon
from .options import ConfigOption, absolute_config


def start(config: ConfigOption = None) -> None:
    """Start the daemon in the background; it stays until `sidestep stop`.

    Returns once it is ready. If one already runs, says so and changes nothing.
    """
    paths = environment_paths()
    info, started = ensure_daemon(paths, absolute_config(config), leave_when_idle=False)
    what = "the daemon is ready" if started else "a daemon runs already"
    print(f"{what}: pid {info.pid}, {info.endpoint}, log {paths.log}")

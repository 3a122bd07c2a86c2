"""Names of runs for the shell's completion: those the daemon has, and those in the log directory.

Somebody waits with a finger on the Tab key: the daemon is asked for a moment only, no archive is
opened, and whatever goes wrong is an empty answer.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from sidestep.proto import SidestepError
from sidestep.proto.naming import safe_name
from sidestep.proto.paths import DEFAULT_LOG_DIR

_PATIENCE_S: Final = 0.5
_ARCHIVES: Final = "scalars"


def complete_run(incomplete: str) -> list[str]:
    """The runs whose names begin so, in order."""
    names = {*_of_daemon(), *_of_log_dir(os.environ.get("SIDESTEP_LOG_DIR") or DEFAULT_LOG_DIR)}
    return sorted(name for name in names if name.startswith(incomplete))


def _of_daemon() -> list[str]:
    from .common import environment_paths
    from .control_client import Control

    with suppress(SidestepError, OSError, KeyError, TypeError, ValueError):
        status = Control(environment_paths()).request("status", _PATIENCE_S)
        return [str(run["run"]) for run in status["runs"]]
    return []


def _of_log_dir(log_dir: str) -> list[str]:
    with suppress(OSError):
        # A name that had to be changed for its folder would not be found by the folder's.
        return [
            name for name in os.listdir(os.path.join(log_dir, _ARCHIVES)) if safe_name(name) == name
        ]
    return []

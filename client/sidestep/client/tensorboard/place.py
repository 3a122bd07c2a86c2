"""Where a writer's event files lie, and what its run is called."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from sidestep.proto.naming import safe_name
from sidestep.proto.paths import DEFAULT_LOG_DIR

from .. import config_file
from ..config_file import ConfigurationError


@dataclass(frozen=True, slots=True)
class Place:
    """A run, and the folder of its event files.

    Attributes:
        path: the folder of the event files, as the user would write it.
        run: the run's name.
        log_dir: the run's log directory.
        direct: whether the event files lie in the log directory itself, as torch puts them, and
            not in a folder of the run's own below it.
    """

    path: str
    run: str
    log_dir: str
    direct: bool


def given_place(log_dir: str) -> Place:
    """The place of a writer that was told its folder; the folder's name is the run's.

    Raises:
        ConfigurationError: it is the address of a store, and no folder.
    """
    if "://" in log_dir:
        raise ConfigurationError(
            f"log_dir {log_dir!r}: event files are written to folders alone; log to one, and copy "
            "what it holds"
        )
    run = os.path.basename(os.path.abspath(log_dir)) or "root"
    return Place(log_dir, run, log_dir, direct=True)


def default_place(environ: Mapping[str, str], comment: str) -> Place:
    """The place of a writer that was told none.

    As for every run where `SIDESTEP_RUN`, `SIDESTEP_LOG_DIR`, or the file that `SIDESTEP_CONFIG`
    names, say where runs go: ``LOG_DIR/tensorboard/RUN``. Else torch's own
    ``runs/<date>_<host><comment>``.

    Raises:
        ConfigurationError: the file is wrong.
    """
    started = time.strftime("%b%d_%H-%M-%S") + "_" + socket.gethostname() + str(comment)
    file = config_file.read(environ.get("SIDESTEP_CONFIG"))
    run = environ.get("SIDESTEP_RUN") or file.experiment_name
    log_dir = environ.get("SIDESTEP_LOG_DIR") or file.log_dir
    if not run and not log_dir:
        return given_place(os.path.join("runs", started))
    run, log_dir = str(run or started), str(log_dir or DEFAULT_LOG_DIR)
    return Place(os.path.join(log_dir, "tensorboard", safe_name(run)), run, log_dir, direct=False)

"""Where a node's daemon and its clients meet: names only, nothing is opened here."""

from __future__ import annotations

import hashlib
import os.path
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .errors import SidestepError

MAX_SOCKET_PATH_BYTES: Final = 107
"""What the kernel takes for a Unix socket, without the closing NUL."""

OUTBOX_SUFFIX: Final = ".outbox"
REMOTE_FILE: Final = "endpoint"
"""In a folder of outboxes for another machine's daemon: its address, and where the keys are."""

DEFAULT_LOG_DIR: Final = "results/logs"


@dataclass(frozen=True, slots=True)
class RuntimePaths:
    """The files in a runtime directory.

    Attributes:
        directory: the directory itself, private to its user (mode 0700).
    """

    directory: str

    @property
    def lock(self) -> str:
        """Held (flock) by the one daemon; its text says who that is."""
        return os.path.join(self.directory, "daemon.lock")

    @property
    def launch_lock(self) -> str:
        """Held (flock) by whoever is starting a daemon just now."""
        return os.path.join(self.directory, "launch.lock")

    @property
    def data_endpoint(self) -> str:
        """Where trainers send their records."""
        return "ipc://" + os.path.join(self.directory, "data.sock")

    @property
    def control_endpoint(self) -> str:
        """Where the command line asks."""
        return "ipc://" + os.path.join(self.directory, "ctl.sock")

    @property
    def feed_endpoint(self) -> str:
        """Where live metrics are published."""
        return "ipc://" + os.path.join(self.directory, "feed.sock")

    @property
    def holders(self) -> str:
        """Files here, while locked (flock), keep a daemon from leaving."""
        return os.path.join(self.directory, "holders")

    @property
    def stopped(self) -> str:
        """Exists when a user stopped the daemon: clients that run on do not start another."""
        return os.path.join(self.directory, "stopped")

    @property
    def log(self) -> str:
        """The log of a daemon that was started in the background."""
        return os.path.join(self.directory, "daemon.log")


def runtime_paths(environ: Mapping[str, str], uid: int, temp_dir: str) -> RuntimePaths:
    """The runtime directory that the environment asks for.

    ``SIDESTEP_RUNTIME_DIR``, else ``$XDG_RUNTIME_DIR/sidestep``, else a folder of the user's in
    `temp_dir`. A relative XDG directory is none, as its specification says.

    Raises:
        SidestepError: its sockets would have paths longer than the kernel takes.
    """
    directory = environ.get("SIDESTEP_RUNTIME_DIR")
    if not directory:
        base = environ.get("XDG_RUNTIME_DIR")
        directory = (
            os.path.join(base, "sidestep")
            if base and os.path.isabs(base)
            else os.path.join(temp_dir, f"sidestep-{uid}")
        )
    paths = RuntimePaths(os.path.abspath(directory))
    longest = len(os.fsencode(paths.feed_endpoint)) - len("ipc://")
    if longest > MAX_SOCKET_PATH_BYTES:
        # Only named here; whoever makes it, makes it private.
        temp_dir = temp_dir if len(os.fsencode(temp_dir)) <= 64 else "/tmp"  # noqa: S108
        short = os.path.join(temp_dir, f"sidestep-{uid}")
        raise SidestepError(
            f"the runtime directory {paths.directory!r} is too long: its sockets would have "
            f"paths of {longest} bytes, the kernel takes {MAX_SOCKET_PATH_BYTES}. Set "
            f"SIDESTEP_RUNTIME_DIR to a shorter path, for example {short!r}"
        )
    return paths


def outbox_dirs(
    paths: RuntimePaths,
    state_dir: str,
    uid: int,
    shared_memory: str = "/dev/shm",  # noqa: S108 - a folder in it that is private
) -> tuple[str, str, str]:
    """The folders where an outbox may be, in the order (runtime, shared memory, disk).

    A client takes the first that is on memory, or else the last; a daemon looks into all.
    """
    digest = hashlib.sha256(os.fsencode(paths.directory)).hexdigest()[:12]
    return (
        os.path.join(paths.directory, "outboxes"),
        os.path.join(shared_memory, f"sidestep-{uid}", digest),
        os.path.join(state_dir, "outboxes"),
    )


def remote_suffix(endpoint: str) -> str:
    """What follows the name of a folder of outboxes when their daemon is at a TCP `endpoint`.

    The daemon of this machine does not look into it: what lies there is another one's.
    """
    return "-" + hashlib.sha256(endpoint.encode()).hexdigest()[:12]


def state_dir(environ: Mapping[str, str], home: str) -> str:
    """``SIDESTEP_STATE_DIR``, else the platform's state directory (XDG on Linux)."""
    explicit = environ.get("SIDESTEP_STATE_DIR")
    if explicit:
        return os.path.abspath(explicit)
    base = environ.get("XDG_STATE_HOME")
    if not base or not os.path.isabs(base):
        base = os.path.join(home, ".local", "state")
    return os.path.join(os.path.abspath(base), "sidestep")

"""What every command needs: where the daemon is, how a failure is stated, where text goes."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from sidestep.proto import SidestepError
from sidestep.proto.paths import RuntimePaths, runtime_paths

if TYPE_CHECKING:
    from rich.console import Console


class CommandError(SidestepError):
    """A stated failure: `main` prints it as one sentence and exits with code 1."""


def environment_paths() -> RuntimePaths:
    """The runtime directory of this user's daemon, as the environment says."""
    return runtime_paths(os.environ, os.getuid(), tempfile.gettempdir())


def console(*, stderr: bool = False) -> Console:
    """A console that shows names as they are: no markup, no emoji codes, no guessed colours."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)

"""Which sinks a run is to have, by its spec and the daemon's settings, and what each is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sidestep.proto import RunSpec

from .config import SidecarSettings

FILE_SINKS: Final = ("tensorboard", "archive")
"""Sinks whose files are in the log directory, under the run's name."""

MIRROR: Final = "mirror"

HOLD_NO_ROWS: Final = frozenset({MIRROR})
"""Sinks that read what other sinks have written: no row has to wait for them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the settings say of sinks.

    Attributes:
        archive: whether runs are to have an archive.
        mirror: the address that files are copied to; None for none.
        mirror_interval_s: seconds between two copies of a file, at least.
    """

    archive: bool = True
    mirror: str | None = None
    mirror_interval_s: float = 15.0

    def sinks(self, run: RunSpec) -> list[str]:
        """The names of the sinks that a run is to have."""
        wanted = {
            "tensorboard": bool(run.tensorboard),
            "wandb": run.wandb is not None,
            "archive": self.archive,
            MIRROR: self.mirror is not None and bool(self._file_sinks(run)),
        }
        return [name for name, is_wanted in wanted.items() if is_wanted]

    def settings(self, sink: str, run: RunSpec) -> Mapping[str, Any]:
        """What a sink's worker is told beside the run: MessagePack types."""
        if sink == MIRROR:
            return {
                "url": self.mirror,
                "interval_s": self.mirror_interval_s,
                "file_sinks": self._file_sinks(run),
            }
        return {}

    def _file_sinks(self, run: RunSpec) -> list[str]:
        has = {"tensorboard": bool(run.tensorboard), "archive": self.archive}
        return [name for name in FILE_SINKS if has[name]]


def wanted_by(settings: SidecarSettings) -> Wanted:
    """What the daemon's settings say."""
    return Wanted(settings.archive, settings.mirror, settings.mirror_interval_s)

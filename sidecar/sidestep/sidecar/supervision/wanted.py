"""Which sinks a run is to have, by its spec and the daemon's settings, and what each is told.

Workers import this, so it must stay small: `config`, with pydantic, takes 17 MB of each process.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sidestep.proto import RunSpec

FILE_SINKS: Final = ("tensorboard", "archive")
"""Sinks whose files are in the log directory, under the run's name."""

MIRROR: Final = "mirror"

FORWARD: Final = "forward"
"""Passes a run on to the next daemon, which writes it: then no other sink is wanted here."""

WEBHOOK: Final = "webhook"

OTLP: Final = "otlp"

HOLD_NO_ROWS: Final = frozenset({MIRROR})
"""Sinks that read what other sinks have written: no row has to wait for them."""

KEEP_WHAT_WAITS: Final = HOLD_NO_ROWS | {WEBHOOK}
"""Sinks that have elsewhere what they are behind by, so that no row which leaves is missed; they
can be hurried."""

LATECOMERS: Final = KEEP_WHAT_WAITS | {OTLP}
"""Sinks that may be switched on when there are many runs, and then have all of them to do."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the settings say of sinks.

    Attributes:
        archive: whether runs are to have an archive.
        mirror: the address that files are copied to; None for none.
        mirror_interval_s: seconds between two copies of a file, at least.
        webhook_url: where alarms are posted; "" for nowhere. A secret.
        webhook_min_state: the least state that is posted.
        forward_to: the next daemon's address; None for none.
        forward_keys: the folder of keys for that; None for none.
        otlp_endpoint: the URL of a Collector's receiver; None for none.
        otlp_interval_s: of each tag one value in so many seconds; 0 for all.
    """

    archive: bool = True
    mirror: str | None = None
    mirror_interval_s: float = 15.0
    webhook_url: str = field(default="", repr=False)
    webhook_min_state: str = "WARN"
    forward_to: str | None = None
    forward_keys: str | None = None
    otlp_endpoint: str | None = None
    otlp_interval_s: float = 1.0

    def sinks(self, run: RunSpec) -> list[str]:
        """The names of the sinks that a run is to have."""
        if self.forward_to is not None:
            return [FORWARD]
        wanted = {
            "tensorboard": bool(run.tensorboard),
            "wandb": run.wandb is not None,
            "archive": self.archive,
            MIRROR: self.mirror is not None and bool(self._file_sinks(run)),
            WEBHOOK: bool(self.webhook_url),
            OTLP: self.otlp_endpoint is not None,
        }
        return [name for name, is_wanted in wanted.items() if is_wanted]

    def settings(self, sink: str, run: RunSpec) -> Mapping[str, Any]:
        """What a sink's worker is told beside the run: MessagePack types."""
        if sink == FORWARD:
            return {"endpoint": self.forward_to, "keys": self.forward_keys}
        if sink == MIRROR:
            return {
                "url": self.mirror,
                "interval_s": self.mirror_interval_s,
                "file_sinks": self._file_sinks(run),
            }
        if sink == WEBHOOK:
            return {
                "url": self.webhook_url,
                "min_state": self.webhook_min_state,
                "host": socket.gethostname(),
            }
        if sink == OTLP:
            return {"url": self.otlp_endpoint, "interval_s": self.otlp_interval_s}
        return {}

    def shown(self, sink: str) -> Mapping[str, str]:
        """What everybody may know of a sink's settings."""
        return {"address": self.forward_to} if sink == FORWARD and self.forward_to else {}

    def _file_sinks(self, run: RunSpec) -> list[str]:
        has = {"tensorboard": bool(run.tensorboard), "archive": self.archive}
        return [name for name in FILE_SINKS if has[name]]

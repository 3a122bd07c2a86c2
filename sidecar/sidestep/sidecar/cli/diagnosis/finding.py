"""What a check has found: how bad it is, in words, and the one command that mends it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from .. import wording

COMPLAINTS: Final = {
    "nothing": "TensorBoard shows nothing",
    "flat": "curves are flat",
    "stops": "curves stop",
    "gpu": "GPU values missing",
    "memory": "memory grows",
    "wandb": "W&B run missing",
}
"""The usual complaints; a finding names the one that it explains."""


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"
    """Well as it is, unless it was meant to be otherwise."""
    WARNING = "warning"
    """Works, and somebody should look at it."""
    WRONG = "wrong"
    """Something that was asked for does not happen."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: which check, as ``area.what``: stays the same whatever it says.
        level: how bad it is.
        says: what is so.
        do: the command that mends it, or that shows what to mend; "" where all is well.
        complaint: what somebody would complain of (see `COMPLAINTS`), "" for none of those.
        run: the run that it is about, "" for none.
    """

    check: str
    level: Level
    says: str
    do: str = ""
    complaint: str = ""
    run: str = ""

    def __post_init__(self) -> None:
        """Whatever came from outside is made harmless for a terminal."""
        for name in ("says", "do", "run"):
            object.__setattr__(self, name, wording.printable(getattr(self, name)))

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "level": self.level.value}


def ok(check: str, says: str, *, run: str = "") -> Finding:
    """All is well."""
    return Finding(check, Level.OK, says, run=run)


def note(check: str, says: str, do: str = "", *, complaint: str = "", run: str = "") -> Finding:
    """Well as it is, unless it was meant to be otherwise."""
    return Finding(check, Level.NOTE, says, do, complaint, run)


def warning(check: str, says: str, do: str = "", *, complaint: str = "", run: str = "") -> Finding:
    """Works, and somebody should look at it."""
    return Finding(check, Level.WARNING, says, do, complaint, run)


def wrong(check: str, says: str, do: str = "", *, complaint: str = "", run: str = "") -> Finding:
    """Something that was asked for does not happen."""
    return Finding(check, Level.WRONG, says, do, complaint, run)

"""Which process of a job this is, and what of its values travels.

With ``ranks="zero"`` the other ranks send what is reduced over all of them, and nothing else; with
``ranks="all"`` what is not reduced carries the rank before its tag.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from sidestep.proto.tag_sets import RANK_PART

from .values import InvalidValueError, Prepared, Value

_OUTBOX_BYTES: Final = 32 << 20
"""Of a rank that sends reduced values alone; shared memory may be scarce where there are many."""

_RECORD_BYTES: Final = 14 << 20
"""The largest record that fits there: two Gram matrices of 1,280 dimensions."""

_JOB: Final = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "MASTER_ADDR", "MASTER_PORT")
"""What is the same for all ranks of a job, and may be for the next job too."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of its job.

    Attributes:
        rank: from 0 on.
        several: whether the job has others.
        all: whether each rank's values are written.
    """

    rank: int
    several: bool
    all: bool

    @property
    def silent(self) -> bool:
        """Whether nothing travels but what is reduced."""
        return self.rank != 0 and not self.all

    @property
    def prefix(self) -> str:
        """What stands before the tag of what is not reduced."""
        return f"rank_{self.rank}/" if self.all else ""

    def outbox_bytes(self, wanted: int) -> int:
        """How large this rank's outbox is, when `wanted` was asked for."""
        return min(wanted, _OUTBOX_BYTES) if self.silent else wanted

    def record_bytes(self, most: int) -> int:
        """Which records all ranks have room for, when this one has it for `most` bytes."""
        return min(most, _RECORD_BYTES) if self.several and not self.all else most

    def reduction(self, value: Value, reduce: str) -> str:
        """How a value is reduced; "" when it is not.

        Raises:
            InvalidValueError: it shall be, and cannot.
        """
        if not self.several:
            return ""
        if value.over_ranks == "always":
            return reduce or "mean"
        if reduce and value.over_ranks == "never":
            raise InvalidValueError(
                f"{type(value).__name__} cannot be reduced over ranks: expected numbers, Histogram,"
                " Gradients, Weights or Representation; emit it in a call without reduce="
            )
        return reduce


def part_of(made: Prepared, reduce: str) -> tuple[str, dict[str, object]]:
    """Kind and info of a record that is this rank's part of what is made of all of them."""
    return RANK_PART, {"kind": made.kind, "info": dict(made.info), "reduce": reduce}


def spread_of_one(numbers: Mapping[str, float]) -> dict[str, float]:
    """What ``reduce="spread"`` writes in a world of one."""
    found: dict[str, float] = {}
    for tag, number in numbers.items():
        # What is not finite has no spread: the difference to itself is not a number.
        found |= {tag: number, f"{tag}_std": number - number}
        found |= {f"{tag}_min": number, f"{tag}_max": number}
    return found


def initialised() -> tuple[int, int] | None:
    """Rank and world size by torch.distributed, if the trainer has set it up; else None."""
    distributed: Any = sys.modules.get("torch.distributed")
    with suppress(Exception):  # half imported, or being torn down
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            return int(distributed.get_rank()), int(distributed.get_world_size())
    return None


def common_name(environ: Mapping[str, str]) -> str | None:
    """A word that all ranks of a launched job would choose, and no other job; None without one.

    On a single node the launcher's process tells jobs apart; over several nodes a job that was
    started with the same address again has the same word.
    """
    known = [environ.get(name, "") for name in _JOB]
    if not any(known):
        return None
    local = environ.get("LOCAL_WORLD_SIZE")
    if local and local == environ.get("WORLD_SIZE"):
        known += [str(os.getppid()), _started(os.getppid())]
    return hashlib.blake2b("\0".join(known).encode(), digest_size=4).hexdigest()


def _started(pid: int) -> str:
    """When a process began, in clock ticks since the machine did; "" where nobody says."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""

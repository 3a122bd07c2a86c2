"""What one trainer of a chaos run does, and what it emits: a stream known in advance.

Emit `e` is one record: the numbers ``PREFIX/v0`` … at step `e`, or, each `value_every` emits, a
value of the part's kind instead. A trainer that takes the place of another has a prefix of its own,
so that each number in the event files says which process emitted it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

MAX_EMITS: Final = 2_000_000
"""Room for what a trainer writes down; what is not written takes no memory."""

ENDS: Final = ("finish", "return", "raise", "exit", "abort")
"""How a trainer may be told to end: the order's number is the place in here plus 1."""

IMAGE, TEXT, HISTOGRAM, MOMENTS = "image", "text", "histogram", "moments"


@dataclass(frozen=True)
class Part:
    """A trainer's place in a chaos run; whoever dies in it is replaced by the next attempt.

    Attributes:
        run: the run's name; several parts may share one.
        logs: folder of the run below the sandbox, see `plan.PLACES`.
        burst: emits without a pause, and then
        pause_s: one of about so many seconds.
        tags: numbers of one record.
        value: kind of the values among them, or "".
        value_every: each so many emits.
        outbox_bytes: room of the outbox.
        on_full: policy of the outbox.
        fork_every: fork after so many emits; 0 for never.
    """

    run: str
    logs: str = "l"
    burst: int = 1
    pause_s: float = 0.004
    tags: int = 5
    value: str = ""
    value_every: int = 50
    outbox_bytes: int = 8 << 20
    on_full: str = "drop"
    fork_every: int = 0

    def is_value(self, e: int) -> bool:
        """Whether emit `e` is a value and not a row of numbers."""
        return bool(self.value) and e % self.value_every == self.value_every - 1

    @property
    def text(self) -> str:
        """In words."""
        words = [f"run {self.run}", f"{self.burst} emits each {self.pause_s:g} s"]
        if self.value:
            words.append(f"{self.value} each {self.value_every}")
        if self.outbox_bytes < 1 << 20:
            words.append(f"outbox {self.outbox_bytes >> 10} KiB, {self.on_full}")
        if self.fork_every:
            words.append(f"forks each {self.fork_every}")
        return ", ".join(words)


def prefix(slot: int, attempt: int) -> str:
    """What the tags of one trainer process begin with."""
    return f"p{slot}.{attempt}"


def row(salt: int, e: int, tags: int) -> list[float]:
    """The numbers of emit `e`: each differs from its neighbours, and few fit into a float32."""
    base = (salt * 1_000_003 + e) * 8191
    return [((base + j * 131) % 16_777_213) / 997.0 for j in range(tags)]


@lru_cache(maxsize=8)
def row32(salt: int, e: int, tags: int) -> list[float]:
    """The same as TensorBoard has them."""
    return [float(x) for x in np.array(row(salt, e, tags), np.float32)]


def salt_of(slot: int, attempt: int) -> int:
    """What the numbers of one trainer process are made of."""
    return 1000 * slot + attempt

"""What happens in a chaos run, drawn wholly from a seed: who trains, which faults come, and when.

What a fault hits is drawn too, as a number: the one of those that are there then, counted modulo.
So a plan is the same on every machine, and what comes of it is nearly so.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from .part import ENDS, HISTOGRAM, IMAGE, MOMENTS, TEXT, Part

SHARED, DOOMED = "m", "d"
PLACES: Final = {
    "l": "a folder",
    SHARED: "a file system of its own, which gets full and read-only",
    DOOMED: "a folder that is deleted again and again: its runs' files are not compared",
}
"""The folders of runs below the sandbox."""

SMALL: Final = 256 << 10

CAST: Final = (
    Part("paced", value=TEXT, value_every=25),
    Part("pair", SHARED, pause_s=0.005, value=IMAGE, value_every=40),
    Part("pair", SHARED, burst=100, pause_s=0.4, value=HISTOGRAM, value_every=50),
    Part("small", burst=1500, pause_s=1.5, outbox_bytes=SMALL),
    Part("forks", pause_s=0.02, tags=3, value=MOMENTS, value_every=10, fork_every=40),
    Part("waits", SHARED, burst=60, pause_s=0.2, outbox_bytes=SMALL, on_full="block"),
    Part("doomed", DOOMED, pause_s=0.02, tags=2, value=TEXT, value_every=20),
)
SHORT_CAST: Final = (CAST[0], CAST[2], CAST[3], CAST[4])


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        weight: how often it is drawn, relative to the others.
        hold_s: for how long it lasts: drawn between these.
        mount: whether it needs a file system that can be mounted.
    """

    weight: int
    hold_s: tuple[float, float] = (0.0, 0.0)
    mount: bool = False


KINDS: Final = {
    # Held: until somebody starts the next one, if no client has done so.
    "daemon-kill": Kind(8, (0.0, 4.0)),
    "daemon-kill-all": Kind(3, (0.0, 4.0)),
    "daemon-stop": Kind(6, (0.2, 7.0)),
    "daemon-term": Kind(3, (0.0, 2.0)),
    "daemon-term-kill": Kind(2, (0.0, 1.0)),
    "worker-kill": Kind(8),
    "worker-stop": Kind(5, (0.2, 5.0)),
    "helper-kill": Kind(4),
    "trainer-kill": Kind(8),
    "trainer-term": Kind(3),
    "trainer-end": Kind(6),
    "trainer-stop": Kind(4, (0.2, 8.0)),
    "logs-full": Kind(4, (0.3, 5.0), mount=True),
    "logs-read-only": Kind(3, (0.3, 5.0), mount=True),
    "logs-deleted": Kind(3),
    "state-full": Kind(4, (0.3, 5.0), mount=True),
    "hostile-frames": Kind(5),
    "hostile-bytes": Kind(3, (0.5, 5.0)),
    "tail-stuck": Kind(3, (1.0, 8.0)),
}


@dataclass(frozen=True, order=True)
class Fault:
    """One fault of a plan.

    Attributes:
        at_s: seconds since the trainers run.
        kind: a name of `KINDS`.
        hold_s: how long it lasts.
        pick: which of those that it may hit.
        draw: the seed of what else is drawn when it happens.
    """

    at_s: float
    kind: str
    hold_s: float
    pick: int
    draw: int

    def __str__(self) -> str:
        held = f" for {self.hold_s:.1f} s" if self.hold_s else ""
        return f"{self.at_s:7.2f} s  {self.kind} #{self.pick}{held}"


@dataclass(frozen=True)
class Plan:
    """A chaos run.

    Attributes:
        seed: what it was drawn from.
        seconds: how long faults happen.
        cast: the trainers.
        faults: by time.
        ends: how each trainer ends after that.
    """

    seed: int
    seconds: float
    cast: tuple[Part, ...]
    faults: tuple[Fault, ...]
    ends: tuple[str, ...]

    @property
    def text(self) -> str:
        """All of it in lines."""
        cast = [f"  trainer {slot}: {part.text}" for slot, part in enumerate(self.cast)]
        faults = [f"  {fault}" for fault in self.faults]
        return "\n".join([f"seed {self.seed}, {self.seconds:g} s", *cast, *faults])


def draw(seed: int, seconds: float, cast: tuple[Part, ...] = CAST) -> Plan:
    """The plan of `seed`: nothing else goes into it."""
    choose = random.Random(f"{seed} {seconds:g}")
    names = list(KINDS)
    weights = [KINDS[name].weight for name in names]
    # A short run is to see many faults too.
    pause_s = 0.7 if seconds < 30 else 2.0
    faults: list[Fault] = []
    at_s = choose.uniform(0.1, 0.5)
    while at_s < seconds:
        (kind,) = choose.choices(names, weights)
        shortest, longest = KINDS[kind].hold_s
        hold_s = round(choose.uniform(shortest, min(longest, max(shortest, seconds / 4))), 2)
        faults.append(
            Fault(round(at_s, 2), kind, hold_s, choose.randrange(100), choose.randrange(1 << 30))
        )
        at_s += min(4 * pause_s, choose.expovariate(1 / pause_s))
    # The end of all is no place for a trainer that dies without a word: it has been tried above.
    ends = [choose.choice([end for end in ENDS if end != "abort"]) for _ in cast]
    return Plan(seed, seconds, cast, tuple(faults), tuple(ends))

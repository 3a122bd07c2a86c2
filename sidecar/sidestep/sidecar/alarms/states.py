"""The states of an alarm, and every change from one to another in one table.

A representation has one small machine for each condition (see `conditions`); its state is the
worst of theirs. All of them go through the same states:

    WARMUP ──► OK ◄──► WATCH ──► WARN ──► COLLAPSED
                            NONFINITE

A condition that is met is watched at once, believed when it is met often enough, and forgotten
only when its figure has stayed on the well side of another, easier threshold: what lies between
the two changes nothing, so a figure that wavers around a threshold does not ring and ring.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final


class State(enum.StrEnum):
    """How a representation stands, by one condition or by all."""

    WARMUP = "WARMUP"  # not judged yet
    OK = "OK"
    WATCH = "WATCH"  # a condition is met, not often enough to be believed
    WARN = "WARN"
    COLLAPSED = "COLLAPSED"
    NONFINITE = "NONFINITE"


class Event(enum.Enum):
    """What an observation says of one condition."""

    WARMED = "warmed"  # the warm-up is over
    MET = "met"
    BELIEVED = "believed"  # met in enough of the last observations
    CRITICAL = "critical"  # the critical threshold passed, often enough in a row
    INFINITE = "infinite"  # a value that is not finite
    CLEARED = "cleared"  # on the well side of the clear threshold, often enough in a row


_S, _E = State, Event
TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = {
    (_S.WARMUP, _E.WARMED): _S.OK,
    (_S.OK, _E.MET): _S.WATCH,
    (_S.OK, _E.BELIEVED): _S.WARN,
    (_S.OK, _E.CRITICAL): _S.COLLAPSED,
    (_S.WATCH, _E.BELIEVED): _S.WARN,
    (_S.WATCH, _E.CRITICAL): _S.COLLAPSED,
    (_S.WATCH, _E.CLEARED): _S.OK,
    (_S.WARN, _E.CRITICAL): _S.COLLAPSED,
    (_S.WARN, _E.CLEARED): _S.OK,
    (_S.COLLAPSED, _E.CLEARED): _S.OK,
    (_S.WARMUP, _E.INFINITE): _S.NONFINITE,
    (_S.OK, _E.INFINITE): _S.NONFINITE,
    (_S.NONFINITE, _E.CLEARED): _S.OK,
}
"""What follows; a pair that is not here changes nothing."""

_LEVELS: Final[Mapping[State, int]] = {
    _S.WARMUP: 0,
    _S.OK: 0,
    _S.WATCH: 1,
    _S.WARN: 2,
    _S.COLLAPSED: 3,
    _S.NONFINITE: 4,
}


def level(state: State) -> int:
    """The number of a state in a curve: 0 OK (or not judged yet) ... 3 COLLAPSED, 4 NONFINITE."""
    return _LEVELS[state]


def worse(state: State) -> tuple[int, bool]:
    """A key that sorts states from well to ill; one that is not judged yet is none to rely on."""
    return _LEVELS[state], state is State.WARMUP


def is_alarm(state: State) -> bool:
    """Whether somebody should look."""
    return _LEVELS[state] > 0

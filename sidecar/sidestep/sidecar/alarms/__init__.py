"""Decides, from a representation's statistics alone, whether it has collapsed.

Pure: figures in, states and transitions out; what is read, stored and sent is done elsewhere.
"""

from __future__ import annotations

from .machine import TagState, Transition, observe
from .observation import FIGURES, ZERO_VARIANCE, Observation
from .rules import Rules
from .run import KIND, PREFIX, Alarm, RunAlarms, alarm_tag, details, first_to_fall, worst
from .states import TRANSITIONS, Event, State, is_alarm, level
from .stored import packed, states_of
from .traces import Traced, TracePoint, observations

__all__ = [
    "FIGURES",
    "KIND",
    "PREFIX",
    "TRANSITIONS",
    "ZERO_VARIANCE",
    "Alarm",
    "Event",
    "Observation",
    "Rules",
    "RunAlarms",
    "State",
    "TagState",
    "TracePoint",
    "Traced",
    "Transition",
    "alarm_tag",
    "details",
    "first_to_fall",
    "is_alarm",
    "level",
    "observations",
    "observe",
    "packed",
    "states_of",
    "worst",
]

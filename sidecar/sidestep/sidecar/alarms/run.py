"""The alarms of one run: all its representations, the worst of them, and which fell first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .machine import TagState, Transition, observe
from .observation import Observation
from .rules import Rules
from .states import State, is_alarm, level

PREFIX: Final = "sidestep/alarm/"
"""Before a representation's tag: the tag of its alarm's curve and texts."""

KIND: Final = "alarm"
"""The kind of value that a transition travels as."""

_MAX_TAG_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Alarm:
    """A transition of one representation, and who fell before it.

    Attributes:
        tag: the representation's tag.
        transition: what happened.
        first: (tag, step) of the representation that fell first and is still down, when that is
            another one.
    """

    tag: str
    transition: Transition
    first: tuple[str, int] | None = None

    def text(self) -> str:
        """One line that says what happened, since when, and what to look at."""
        t = self.transition
        parts = [f"{t.reason}; since step {t.since_step:,}"]
        if self.first is not None:
            parts.append(f"the first to fall was {self.first[0]}, at step {self.first[1]:,}")
        if t.advice:
            parts.append(t.advice.replace("{tag}", self.tag))
        return ". ".join(part[:1].upper() + part[1:] for part in parts)


class RunAlarms:
    """The states of a run's representations; the one thing here that changes.

    Args:
        rules: the thresholds.
        states: what is known already, by tag.
    """

    def __init__(self, rules: Rules, states: Mapping[str, TagState] | None = None) -> None:
        self.states: dict[str, TagState] = dict(states or {})
        self._rules = rules
        self._seen = sum(state.seen for state in self.states.values())

    def observe(self, tag: str, observation: Observation) -> Alarm | None:
        """Take an observation; the alarm if the representation's state is another one now."""
        before = self.states.get(tag, TagState())
        self.states[tag], transition = observe(before, observation, self._rules, self._seen)
        self._seen += 1
        if transition is None:
            return None
        first = first_to_fall(self.states)
        if first is None or first == tag or not is_alarm(transition.state):
            return Alarm(tag, transition)
        return Alarm(tag, transition, (first, self.states[first].since_step))

    @property
    def worst(self) -> State:
        """The run's state."""
        return worst(self.states.values())


def worst(states: Iterable[TagState]) -> State:
    """The worst state, OK when there is nothing wrong: also when nothing was judged yet."""
    found = max((state.state for state in states), key=level, default=State.OK)
    return found if is_alarm(found) else State.OK


def first_to_fall(states: Mapping[str, TagState]) -> str | None:
    """Which of the representations that are down fell before all others."""
    fallen = {tag: state.fell for tag, state in states.items() if state.fell is not None}
    return min(fallen, key=lambda tag: fallen[tag]) if fallen else None


def details(states: Mapping[str, TagState]) -> list[dict[str, Any]]:
    """What there is to say of each representation, the one that fell first before all others."""
    order = sorted(
        states,
        key=lambda tag: (states[tag].fell is None, states[tag].fell or 0, tag),
    )
    return [
        {
            "tag": tag,
            "state": states[tag].state.value,
            "since_step": states[tag].since_step,
            "reason": states[tag].reason if is_alarm(states[tag].state) else "",
        }
        for tag in order
    ]


def alarm_tag(tag: str) -> str:
    """The tag of a representation's alarm, cut at its beginning where it would be too long."""
    room = _MAX_TAG_BYTES - len(PREFIX)
    return PREFIX + tag.encode()[-room:].decode(errors="ignore")

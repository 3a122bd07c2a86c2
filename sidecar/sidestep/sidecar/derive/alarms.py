"""Watches representations: each observation to a point of the alarm's curve, each fall to a text.

The states are journalled with the derivers' cursor, and a new process begins with those that belong
to the row it begins after: whatever dies, no transition is lost and none is said twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sidestep.proto import Value

from .. import alarms
from ..alarms import Alarm, Rules, RunAlarms
from .deriver import Derived, Observation


class AlarmWatcher:
    """The alarms of all runs, in the derivers' process.

    Args:
        rules: the thresholds.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._runs: dict[int, RunAlarms] = {}

    def restore(self, run_id: int, states: Mapping[str, bytes]) -> None:
        """Begin with what is journalled of a run; what cannot be read begins anew."""
        self._runs[run_id] = RunAlarms(self._rules, alarms.states_of(states))

    def __call__(self, observation: Observation) -> Iterator[Derived]:
        """The alarm's point, and its text when the state is another one now."""
        run = self._runs[observation.run_id]
        tag = observation.tag
        alarm = run.observe(tag, alarms.Observation.of(observation.step, observation.figures))
        state = run.states[tag]
        yield Derived(
            observation.step,
            observation.time_ns,
            {alarms.alarm_tag(tag): float(alarms.level(state.state))},
            () if alarm is None else (value_of(alarm, observation.time_ns),),
            alarm_states={tag: alarms.packed(state)},
        )


def value_of(alarm: Alarm, time_ns: int) -> Value:
    """The value that tells the sinks, and the run's clients, of a transition."""
    transition = alarm.transition
    info: dict[str, object] = {
        "representation": alarm.tag,
        "state": transition.state.value,
        "previous": transition.previous.value,
        "since_step": transition.since_step,
        "condition": transition.condition,
        "reason": transition.reason,
        "text": alarm.text(),
    }
    return Value(alarms.KIND, alarms.alarm_tag(alarm.tag), transition.step, time_ns, info)

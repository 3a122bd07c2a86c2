"""The machine of one representation: a state and an observation in, the next state out.

Pure: no clock, no file, no thread. Observations are taken in the order in which they arrive; their
steps are only said, never compared, so a run that was restarted from a checkpoint goes on with
the state it had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

from .averages import Averages
from .conditions import ADVICE, JUDGES, NONFINITE, Evidence, Finding, Verdict
from .observation import Observation
from .rules import Rules
from .states import TRANSITIONS, Event, State, is_alarm, worse

VERSION: Final = 1
"""Of a stored state; one of another version is not read."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of one representation.

    Attributes:
        state: where it stands.
        recent: the newest verdicts, as many as a debounce looks at.
        usual: average of the condition's figure while it was clear.
        text: what was seen last.
    """

    state: State = State.WARMUP
    recent: tuple[int, ...] = ()
    usual: float | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class TagState:
    """All that is known of one representation.

    Attributes:
        state: the worst of its conditions.
        conditions: by name.
        averages: what is remembered of the figures.
        seen: observations, all of them.
        judged: observations that were good enough for a verdict, up to the end of the warm-up.
        step: of the newest observation.
        since_step: where it began to be as it is: the first observation that was not well, or for
            OK the one at which it became so.
        changed_step: of the observation that made it what it is.
        fell: observations of the whole run before the one at which this representation fell; None
            while it is well.
        reason: why it is in its state; "" when nothing was ever wrong.
    """

    state: State = State.WARMUP
    conditions: Mapping[str, Condition] = field(
        default_factory=lambda: {name: Condition() for name in JUDGES}
    )
    averages: Averages = field(default_factory=Averages)
    seen: int = 0
    judged: int = 0
    step: int = 0
    since_step: int = 0
    changed_step: int = 0
    fell: int | None = None
    reason: str = ""

    def plain(self) -> dict[str, Any]:
        """The state in MessagePack types."""
        averages = self.averages
        return {
            "v": VERSION,
            "state": self.state.value,
            "conditions": {
                name: [each.state.value, list(each.recent), each.usual, each.text]
                for name, each in self.conditions.items()
            },
            "averages": [getattr(averages, name) for name in _AVERAGES],
            **{name: getattr(self, name) for name in _NUMBERS},
            "reason": self.reason,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """What `plain` made.

        Raises:
            ValueError: it was made by another version.
        """
        if plain.get("v") != VERSION:
            raise ValueError(f"an alarm's state of version {plain.get('v')!r:.40}, not {VERSION}")
        try:
            numbers = dict(zip(_AVERAGES, plain["averages"], strict=True))
            if numbers["anchor"] is not None:
                numbers["anchor"] = tuple(numbers["anchor"])
            conditions = {
                str(name): Condition(State(state), tuple(recent), usual, text)
                for name, (state, recent, usual, text) in plain["conditions"].items()
            }
            return cls(
                State(plain["state"]),
                {name: conditions.get(name, Condition()) for name in JUDGES},
                Averages(**numbers),
                reason=plain["reason"],
                **{name: plain[name] for name in _NUMBERS},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"an alarm's state that is damaged: {error!r:.200}") from error


_NUMBERS: Final = ("seen", "judged", "step", "since_step", "changed_step", "fell")
_AVERAGES: Final = tuple(Averages.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Transition:
    """A representation went from one state to another.

    Attributes:
        step: of the observation at which it did.
        previous: the state before.
        state: the state from now on.
        since_step: the first observation that was not well; for OK, `step`.
        condition: which condition is the worst, "" when all are well.
        reason: what fell, from where, to where.
        advice: what to look at; {tag} stands for the representation's tag.
    """

    step: int
    previous: State
    state: State
    since_step: int
    condition: str
    reason: str
    advice: str


def observe(
    before: TagState, observation: Observation, rules: Rules, order: int = 0
) -> tuple[TagState, Transition | None]:
    """The state after `observation`, and the transition if it is another one.

    The end of a warm-up is no transition: nothing has happened.

    Args:
        before: the state until now; `TagState()` for the first observation.
        observation: what was seen.
        rules: the thresholds.
        order: a number that grows from observation to observation of the whole run.
    """
    enough = observation.n_images is None or observation.n_images >= rules.min_images
    # A training that diverged says nothing of a baseline.
    averaged = enough and not observation.nonfinite
    judged = before.judged + (averaged and before.judged <= rules.warmup_observations)
    warm = judged > rules.warmup_observations
    averages = before.averages
    if averaged:
        averages = averages.after(observation, rules, warm=warm)
    conditions: dict[str, Condition] = {}
    for name, judge in JUDGES.items():
        condition = before.conditions[name]
        at_once = name == NONFINITE
        finding = None
        if at_once or (enough and warm):
            finding = judge(Evidence(observation, averages, condition.usual), rules)
        if warm:
            condition = _moved(condition, Event.WARMED)
        if finding is not None:
            condition = _with(condition, finding, rules, at_once=at_once)
        conditions[name] = condition
    after = replace(
        before,
        conditions=conditions,
        averages=averages,
        seen=before.seen + 1,
        judged=judged,
        step=observation.step,
    )
    return _settled(after, order)


def _with(condition: Condition, finding: Finding, rules: Rules, *, at_once: bool) -> Condition:
    """The condition after one more finding."""
    recent = (*condition.recent, int(finding.verdict))[-rules.debounce_of :]
    usual = condition.usual
    if finding.verdict is Verdict.CLEAR:
        weight = rules.ewma_weight
        usual = finding.figure if usual is None else (1 - weight) * usual + weight * finding.figure
    # Of what is over, the worst that was seen is kept in words until the next time.
    text = finding.text if finding.verdict >= Verdict.MET else condition.text
    moved = replace(condition, recent=recent, usual=usual, text=text)
    for event in _events(recent, rules, at_once=at_once):
        moved = _moved(moved, event)
    return moved


def _events(recent: tuple[int, ...], rules: Rules, *, at_once: bool) -> list[Event]:
    """What the newest verdicts say, the weakest first."""
    newest = recent[-1]
    if at_once:
        infinite = newest == Verdict.CRITICAL
        clear = _in_a_row(recent, Verdict.CLEAR, rules.clear_in_a_row)
        return [Event.INFINITE] if infinite else [Event.CLEARED] if clear else []
    if newest >= Verdict.MET:
        found = [Event.MET]
        if sum(verdict >= Verdict.MET for verdict in recent) >= rules.debounce_met:
            found.append(Event.BELIEVED)
        if _in_a_row(recent, Verdict.CRITICAL, rules.critical_in_a_row):
            found.append(Event.CRITICAL)
        return found
    return [Event.CLEARED] if _in_a_row(recent, Verdict.CLEAR, rules.clear_in_a_row) else []


def _in_a_row(recent: tuple[int, ...], verdict: Verdict, many: int) -> bool:
    return recent[-many:] == (int(verdict),) * many


def _moved(condition: Condition, event: Event) -> Condition:
    state = TRANSITIONS.get((condition.state, event))
    return condition if state is None else replace(condition, state=state)


def _settled(after: TagState, order: int) -> tuple[TagState, Transition | None]:
    """The worst of the conditions makes the state, and a change of it a transition."""
    # The nonfinite condition is never warming up by itself: alone it makes nothing well.
    name = max(JUDGES, key=lambda each: worse(after.conditions[each].state))
    worst = after.conditions[name]
    previous, state = after.state, worst.state
    if state is previous:
        if is_alarm(state):
            after = replace(after, reason=worst.text)
        return after, None
    if not is_alarm(state) and not is_alarm(previous):
        return replace(after, state=state, since_step=after.step, changed_step=after.step), None
    if is_alarm(state):
        since_step = after.since_step if is_alarm(previous) else after.step
        fell = after.fell if is_alarm(previous) else order
        reason, advice = worst.text, ADVICE[name]
    else:
        since_step, fell, name, advice = after.step, None, "", ""
        reason = f"over: {after.reason}" if after.reason else "over"
    after = replace(
        after,
        state=state,
        since_step=since_step,
        changed_step=after.step,
        fell=fell,
        reason=reason,
    )
    return after, Transition(after.step, previous, state, since_step, name, reason, advice)

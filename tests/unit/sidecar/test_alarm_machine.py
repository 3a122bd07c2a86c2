"""The alarms' machine under any figures whatever: what can never happen, and what always does."""

from __future__ import annotations

import math
from typing import Any

import msgpack
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sidestep.sidecar.alarms import (
    TRANSITIONS,
    Observation,
    Rules,
    State,
    TagState,
    Transition,
    is_alarm,
    level,
    observe,
)
from sidestep.sidecar.alarms.conditions import JUDGES, NONFINITE, Verdict

WELL = {
    "n_images": 32.0,
    "n_dims": 64.0,
    "nonfinite": 0.0,
    "variance_share": 0.5,
    "pr_images": 30.0,
    "share_image": 0.4,
    "target_error": 0.5,
    "target_variance": 5.0,
    "loss": 3.0,
}
INTERESTING = {
    "n_images": (0.0, 7.0, 8.0, 32.0, 500.0),
    "n_dims": (1.0, 2.0, 8.0, 64.0),
    "nonfinite": (0.0, 0.0, 0.0, 1.0, math.nan),
    "variance_share": (0.0, 9e-4, 1e-3, 5e-3, 1e-2, 2e-2, 3e-2, 0.031, 0.5, 1.0),
    "pr_images": (0.5, 1.9, 2.0, 7.0, 14.0, 16.0, 20.0, 30.0, 500.0, math.inf),
    "share_image": (0.0, 0.94, 0.96, 0.985, 1.0),
    "share_position": (0.0, 0.94, 0.96, 0.985, 1.0),
    "target_error": (0.0, 0.1, 0.5, 1.0),
    "target_variance": (0.0, 1e-6, 1.0, 5.0),
    "loss": (-1.0, 0.0, 1e-6, 1.0, 3.0),
    "std": (0.0, 1.0),
}
ANY = st.floats(allow_nan=True, allow_infinity=True)
FIGURES: st.SearchStrategy[dict[str, float]] = st.fixed_dictionaries(
    {},
    optional={name: st.sampled_from(values) | ANY.map(abs) for name, values in INTERESTING.items()},
)


class AlarmMachine(RuleBasedStateMachine):
    """Two machines see the same; one of them is stored and restored whenever it pleases."""

    rules_: Rules

    @initialize(warmup=st.integers(0, 3), met=st.integers(1, 3), critical=st.integers(1, 3))
    def begin(self, warmup: int, met: int, critical: int) -> None:
        self.rules_ = Rules(
            warmup_observations=warmup, debounce_met=met, critical_in_a_row=critical
        )
        self.state = self.restored = self.before = TagState()
        self.step = 0
        self.said: Transition | None = None
        self.observed = False

    @rule(figures=FIGURES, times=st.integers(1, 4))
    def see(self, figures: dict[str, float], times: int) -> None:
        for _ in range(times):
            self.take(figures)

    @rule(changes=FIGURES, times=st.integers(1, 4))
    def see_what_is_mostly_well(self, changes: dict[str, float], times: int) -> None:
        for _ in range(times):
            self.take({**WELL, **changes})

    @rule(times=st.integers(1, 5))
    def recover(self, times: int) -> None:
        for _ in range(times):
            self.take(WELL)

    @rule()
    def store_and_restore(self) -> None:
        packed = msgpack.packb(self.restored.plain())
        self.restored = TagState.from_plain(msgpack.unpackb(packed))

    def take(self, figures: dict[str, float]) -> None:
        self.step += 1
        observation = Observation.of(self.step, figures)
        self.before = self.state
        self.state, self.said = observe(self.state, observation, self.rules_, self.step)
        self.restored, said = observe(self.restored, observation, self.rules_, self.step)
        assert said == self.said
        self.check_transition()
        self.check_conditions()

    def check_transition(self) -> None:
        said = self.said
        if said is None:
            changed = self.state.state is not self.before.state
            assert not changed or not (is_alarm(self.state.state) or is_alarm(self.before.state))
            return
        assert said.previous is self.before.state
        assert said.state is self.state.state
        assert said.previous is not said.state
        assert said.step == self.step >= said.since_step
        assert said.reason.strip()
        assert is_alarm(said.state) == bool(said.condition) == bool(said.advice)

    def check_conditions(self) -> None:
        rules = self.rules_
        for name in JUDGES:
            was, now = self.before.conditions[name], self.state.conditions[name]
            if was.state is now.state:
                continue
            # One observation may be several events: the end of the warm-up, and its own.
            assert now.state in reachable(was.state)
            recent = now.recent
            if now.state is State.COLLAPSED:
                critical = rules.critical_in_a_row
                assert recent[-critical:] == (Verdict.CRITICAL,) * critical
            if now.state is State.WARN:
                assert sum(v >= Verdict.MET for v in recent) >= rules.debounce_met
            if now.state is State.OK and is_alarm(was.state):
                clear = rules.clear_in_a_row
                assert recent[-clear:] == (Verdict.CLEAR,) * clear
            assert (now.state is State.NONFINITE) <= (name == NONFINITE)

    @invariant()
    def a_state_is_the_worst_of_its_conditions(self) -> None:
        worst = max(level(each.state) for each in self.state.conditions.values())
        assert level(self.state.state) == worst

    @invariant()
    def what_was_restored_is_the_same(self) -> None:
        assert self.restored == self.state

    @invariant()
    def nothing_is_judged_before_the_warm_up_is_over(self) -> None:
        if self.state.judged <= self.rules_.warmup_observations:
            assert self.state.state in (State.WARMUP, State.NONFINITE)

    @invariant()
    def who_is_down_has_fallen_and_who_is_not_has_not(self) -> None:
        assert is_alarm(self.state.state) == (self.state.fell is not None)


def reachable(state: State) -> set[State]:
    """Every state that a chain of events leads to from `state`."""
    found = {state}
    while True:
        more = {after for (before, _), after in TRANSITIONS.items() if before in found} - found
        if not more:
            return found
        found |= more


TestAlarmMachine = AlarmMachine.TestCase
TestAlarmMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@given(st.lists(FIGURES, max_size=60))
@settings(max_examples=40, deadline=None)
def test_any_figures_whatever_are_taken(traces: list[dict[str, float]]) -> None:
    state: Any = TagState()
    for step, figures in enumerate(traces):
        state, _ = observe(state, Observation.of(step, figures), Rules())
        assert TagState.from_plain(msgpack.unpackb(msgpack.packb(state.plain()))) == state


def test_every_state_is_reached_and_left() -> None:
    targets, sources = set(TRANSITIONS.values()), {state for state, _ in TRANSITIONS}
    assert targets == set(State) - {State.WARMUP}
    assert sources == set(State)

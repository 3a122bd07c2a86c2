"""Every collapse is found, soon, and nothing else is: synthetic traces of every kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest

from sidestep.sidecar.alarms import (
    Alarm,
    Observation,
    Rules,
    RunAlarms,
    State,
    TagState,
    Transition,
    alarm_tag,
    details,
    level,
    observe,
)
from tests.support.healthy import figures, power_law, sampled

HEALTHY = {
    "n_images": 64.0,
    "n_dims": 192.0,
    "nonfinite": 0.0,
    "variance_share": 0.6,
    "pr_images": 60.0,
    "share_image": 0.5,
    "share_position": 0.2,
    "target_error": 0.5,
    "target_variance": 10.0,
    "loss": 5.0,
}
RULES = Rules()
WARM = RULES.warmup_observations


def watch(
    traces: Iterable[Mapping[str, float]], rules: Rules = RULES, state: TagState | None = None
) -> tuple[TagState, list[Transition]]:
    """The state after all of `traces`, and the transitions on the way; steps are 100 apart."""
    state = state or TagState()
    found = []
    for number, trace in enumerate(traces, state.seen):
        state, transition = observe(state, Observation.of(100 * number, trace), rules)
        if transition is not None:
            found.append(transition)
    return state, found


def healthy(many: int, **changes: float) -> list[dict[str, float]]:
    return [{**HEALTHY, **changes}] * many


def states(transitions: Iterable[Transition]) -> list[str]:
    return [transition.state.value for transition in transitions]


# --- what must not ring ----------------------------------------------------------------------


def test_the_warm_up_ends_without_a_word() -> None:
    state, found = watch(healthy(WARM))
    assert (state.state, found) == (State.WARMUP, [])
    state, found = watch(healthy(1), state=state)
    assert (state.state, found) == (State.OK, [])
    assert state.since_step == 100 * WARM


@pytest.mark.parametrize(
    ("seed", "dims", "exponent", "images"),
    [
        (0, 192, 1.0, 32),
        (1, 192, 0.5, 64),
        (2, 64, 2.0, 32),
        (3, 96, 1.0, 128),
        (4, 192, 1.0, 8),
        (5, 64, 0.0, 16),
    ],
)
def test_ten_thousand_healthy_observations(
    seed: int, dims: int, exponent: float, images: int
) -> None:
    # 10,000 in all, of batches from the smallest that is judged on.
    rng = np.random.default_rng(seed)
    state, found = watch(sampled(rng, power_law(dims, exponent), images, 1700))
    assert (states(found), state.state) == ([], State.OK)


def test_a_growing_batch_is_no_collapse() -> None:
    rng = np.random.default_rng(7)
    spectrum = power_law(192, 0.7)
    traces = [
        trace
        for images in (8, 16, 32, 64, 128, 256)
        for trace in sampled(rng, spectrum, images, 60)
    ]
    assert watch(traces)[1] == []
    assert watch(reversed(traces))[1] == []


@pytest.mark.parametrize("scale", [1e-3, 1e-12, 1e6])
def test_the_scale_says_nothing(scale: float) -> None:
    rng = np.random.default_rng(8)
    spectrum = power_law(96, 1.0)
    before = list(sampled(rng, spectrum, 32, 60))
    after = list(sampled(rng, spectrum, 32, 60, scale=scale))
    state, found = watch([*before, *after])
    assert (state.state, found) == (State.OK, [])


def test_an_early_dip_that_recovers_is_no_collapse() -> None:
    # A random network ranks high, the first epochs low: the baseline begins after the warm-up.
    dip = [healthy(1, pr_images=60 * math.exp(-i / 5))[0] for i in range(WARM)]
    back = [healthy(1, pr_images=2 + i)[0] for i in range(60)]
    assert watch([*dip, *back])[1] == []


def test_too_few_images_are_not_judged() -> None:
    state, found = watch(healthy(100, n_images=7.0, variance_share=0.0))
    assert (state.state, found) == (State.WARMUP, [])
    state, _ = watch(healthy(WARM + 5))
    after, found = watch(healthy(50, n_images=7.0, variance_share=0.0, pr_images=1.0), state=state)
    assert (after.state, found) == (State.OK, [])
    assert after.averages == state.averages


def test_two_dimensions_are_never_more_than_two() -> None:
    assert watch(healthy(100, n_dims=2.0, pr_images=1.3))[1] == []


@pytest.mark.parametrize("dims", [0.0, -1.0, math.nan])
def test_dimensions_that_cannot_be_are_none_known(dims: float) -> None:
    assert watch(healthy(60, n_dims=dims))[1] == []


# --- what must -------------------------------------------------------------------------------


def test_complete_collapse_of_rows_that_are_all_one_vector() -> None:
    rng = np.random.default_rng(9)
    before = list(sampled(rng, power_law(96, 1.0), 32, 40))
    one = rng.standard_normal(96)
    one = (one - one.mean()) / one.std()  # as a LayerNorm makes it: its norm says nothing
    after = [figures(np.tile(one, (32, 1)) + 1e-4 * rng.standard_normal((32, 96)))] * 10
    state, found = watch([*before, *after])
    assert states(found) == ["WATCH", "COLLAPSED"]
    assert found[-1].step == 4100
    assert found[-1].since_step == 4000
    assert found[-1].condition == "complete"
    assert found[-1].reason.startswith("variance share from 0.3")
    assert state.state is State.COLLAPSED


@pytest.mark.parametrize(
    "figures_of_zero",
    [
        {"variance_share": 0.0},
        {"std": 0.0},
        {"variance_share": 0.0, "pr_images": math.nan},
        {"variance_share": math.nan, "std": 0.0},
    ],
)
def test_variance_that_is_zero_is_a_collapse_though_nothing_else_is_defined(
    figures_of_zero: dict[str, float],
) -> None:
    zero = {"n_images": 64.0, "n_dims": 192.0, "nonfinite": 0.0, **figures_of_zero}
    state, found = watch([*healthy(30), *[zero] * 2])
    assert states(found) == ["WATCH", "COLLAPSED"]
    state, found = watch([zero] * (WARM + 2))  # also when it never was otherwise
    assert state.state is State.COLLAPSED


def test_complete_warning_needs_three_of_five() -> None:
    state, _ = watch(healthy(30))
    pattern = [5e-3, 0.6, 5e-3, 0.6, 5e-3]
    _, found = watch([healthy(1, variance_share=v)[0] for v in pattern], state=state)
    assert states(found) == ["WATCH", "WARN"]
    assert found[-1].since_step == 3000
    _, found = watch([healthy(1, variance_share=v)[0] for v in (5e-3, 0.6, 0.6, 0.6)], state=state)
    assert states(found) == ["WATCH", "OK"]


def test_one_critical_observation_is_not_a_collapse() -> None:
    state, _ = watch(healthy(30))
    shares = [1e-4, 0.6, 1e-4, 0.6, 0.6, 0.6]
    _, found = watch([healthy(1, variance_share=v)[0] for v in shares], state=state)
    assert states(found) == ["WATCH", "OK"]


def test_between_warn_and_clear_nothing_changes() -> None:
    state, _ = watch([*healthy(30), *healthy(5, variance_share=5e-3)])
    assert state.state is State.WARN
    state, found = watch(healthy(500, variance_share=0.029), state=state)
    assert (state.state, found) == (State.WARN, [])
    state, found = watch(healthy(3, variance_share=0.031), state=state)
    assert states(found) == ["OK"]
    assert found[0].reason.startswith("over: variance share")


def test_flapping_rings_once() -> None:
    rng = np.random.default_rng(10)
    shares = 10 ** rng.normal(-2.0, 0.12, 1000)  # around the threshold, a third to each side
    _, found = watch([*healthy(30), *(healthy(1, variance_share=v)[0] for v in shares)])
    assert states(found) in (["WATCH", "WARN"], ["WARN"])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("images", [8, 32, 256])
def test_dimensional_collapse_is_found_within_fifty_observations(seed: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    before = list(sampled(rng, power_law(64, 0.5), images, 60))
    few = np.where(np.arange(64) < 4, 1.0, 1e-6)  # four directions of sixty-four are left
    state, found = watch([*before, *sampled(rng, few, images, 50)])
    assert state.state is State.COLLAPSED
    assert found[-1].condition == "dimensional"
    assert found[-1].since_step >= 6000
    assert "of 64 dimensions" in found[-1].reason


def test_dimensional_collapse_below_two_needs_no_baseline() -> None:
    state, found = watch(healthy(WARM + 2, pr_images=1.2))
    assert state.state is State.COLLAPSED
    assert found[-1].step == 100 * (WARM + 1)


def test_a_slow_drift_is_found() -> None:
    # Half of it is lost in 693 observations: no step of it is to be seen.
    traces = [healthy(1, pr_images=60 * math.exp(-i / 1000))[0] for i in range(2000)]
    _, found = watch([*healthy(30), *traces])
    assert states(found) == ["WATCH", "WARN", "COLLAPSED"]
    assert 30 + 690 < found[0].step / 100 < 30 + 720
    assert 30 + 1380 < found[2].step / 100 < 30 + 1410


def test_the_baseline_is_the_best_that_ever_was() -> None:
    up = [healthy(1, pr_images=20.0 + i)[0] for i in range(80)]
    state, found = watch([*up, *healthy(30, pr_images=45.0)])
    assert states(found) == ["WATCH", "WARN"]
    assert "from 9" in found[-1].reason
    state, found = watch(healthy(30, pr_images=80.0), state=state)
    assert states(found) == ["OK"]


def test_all_tokens_of_an_image_alike() -> None:
    _, found = watch([*healthy(30), *healthy(5, share_image=1.0, share_position=0.0)])
    assert states(found) == ["WATCH", "COLLAPSED"]
    assert found[-1].condition == "token"
    assert "between images" in found[-1].reason
    _, found = watch([*healthy(30), *healthy(5, share_position=0.985, share_image=0.01)])
    assert states(found) == ["WATCH", "WARN"]
    assert "between positions" in found[-1].reason


def lying(many: int, **slopes: float) -> list[dict[str, float]]:
    """Figures of which those in `slopes` shrink by that share of themselves at each observation."""
    return [
        healthy(1, **{name: HEALTHY[name] * (1 - slope) ** i for name, slope in slopes.items()})[0]
        for i in range(many)
    ]


def test_the_lying_loss() -> None:
    state, found = watch([*healthy(30), *lying(50, loss=0.03, target_variance=0.03)])
    assert states(found) == ["WATCH", "WARN"]
    assert found[-1].condition == "lying_loss"
    assert found[-1].advice.startswith("look at {tag}_target_error")
    # The error falls at last: the loss has stopped lying.
    state, found = watch(healthy(30, loss=1.0, target_variance=2.2, target_error=0.1), state=state)
    assert states(found) == ["OK"]


@pytest.mark.parametrize(
    "slopes",
    [
        {"loss": 0.03, "target_error": 0.03, "target_variance": 0.005},  # it learns
        {"loss": 0.03},  # the error is flat, but so is the variance: another loss than this
        {"target_variance": 0.03},  # the loss does not fall
        {"loss": 0.03, "target_variance": 0.03, "target_error": 0.03},
    ],
)
def test_a_loss_that_does_not_lie(slopes: dict[str, float]) -> None:
    assert watch([*healthy(30), *lying(60, **slopes)])[1] == []


def test_a_loss_below_zero_can_lie_too() -> None:
    traces = lying(60, target_variance=0.03)
    for number, trace in enumerate(traces):
        trace["loss"] = -1.0 - 0.02 * number
    assert states(watch([*healthy(30, loss=-1.0), *traces])[1]) == ["WATCH", "WARN"]


def test_nonfinite_is_at_once_and_also_in_the_warm_up() -> None:
    broken = {"nonfinite": 3.0, "n_images": 0.0, "n_dims": 192.0}
    state, found = watch([*healthy(3), broken])
    assert [(t.previous, t.state) for t in found] == [(State.WARMUP, State.NONFINITE)]
    assert found[0].reason == "3 elements are NaN or infinite"
    state, found = watch(healthy(3), state=state)
    assert [(t.previous, t.state) for t in found] == [(State.NONFINITE, State.WARMUP)]
    state, found = watch([*healthy(WARM), broken, broken], state=state)
    assert states(found) == ["NONFINITE"]
    assert level(state.state) == 4


def test_what_is_not_finite_teaches_no_baseline() -> None:
    state, _ = watch(healthy(30))
    after, _ = watch(healthy(1, nonfinite=1.0, pr_images=190.0), state=state)
    assert after.averages == state.averages


# --- order, runs, words ----------------------------------------------------------------------


def test_the_level_that_fell_first_is_named() -> None:
    run = RunAlarms(RULES)
    alarms: list[Alarm] = []
    for number in range(60):
        for name, falls_at in (("level_0", 45), ("level_1", 40), ("level_2", 99)):
            share = 0.6 if number < falls_at else 1e-5
            found = run.observe(name, Observation.of(number, {**HEALTHY, "variance_share": share}))
            if found is not None:
                alarms.append(found)
    assert [(a.tag, a.transition.state.value, a.first) for a in alarms] == [
        ("level_1", "WATCH", None),
        ("level_1", "COLLAPSED", None),
        ("level_0", "WATCH", ("level_1", 40)),
        ("level_0", "COLLAPSED", ("level_1", 40)),
    ]
    assert run.worst is State.COLLAPSED
    assert [(d["tag"], d["state"], d["since_step"]) for d in details(run.states)] == [
        ("level_1", "COLLAPSED", 40),
        ("level_0", "COLLAPSED", 45),
        ("level_2", "OK", 20),
    ]
    text = alarms[-1].text()
    assert text.startswith("Variance share from 0.6 to 1e-05")
    assert "The first to fall was level_1, at step 40" in text
    assert "{tag}" not in text
    assert "level_0_variance_share" in text


def test_steps_that_go_backwards_are_observations_like_others() -> None:
    # A restart from a checkpoint, and a purge: what arrives later is later.
    forward, _ = watch([*healthy(25), *healthy(4, variance_share=1e-5)])
    state, found = TagState(), []
    steps = [*range(0, 2500, 100), 900, 1000, 800, 0]
    traces = [*healthy(25), *healthy(4, variance_share=1e-5)]
    for step, trace in zip(steps, traces, strict=True):
        state, transition = observe(state, Observation.of(step, trace), RULES)
        found += [transition] if transition else []
    assert [(t.step, t.state.value, t.since_step) for t in found] == [
        (900, "WATCH", 900),
        (1000, "COLLAPSED", 900),
    ]
    nowhere = {"step": 0, "since_step": 0, "changed_step": 0}
    assert replace(state, **nowhere) == replace(forward, **nowhere)


def test_a_run_in_its_warm_up_has_no_alarm() -> None:
    run = RunAlarms(RULES)
    assert run.worst is State.OK
    run.observe("t", Observation.of(0, HEALTHY))
    assert run.worst is State.OK
    assert details(run.states)[0]["state"] == "WARMUP"


def test_states_go_through_msgpack_as_they_are() -> None:
    state, _ = watch([*healthy(30), *healthy(2, variance_share=1 / 300)])
    packed = msgpack.packb(state.plain())
    assert len(packed) < 1500
    assert TagState.from_plain(msgpack.unpackb(packed)) == state


@pytest.mark.parametrize("wrong", [{}, {"v": 2}, {"v": 1}, {"v": 1, "averages": [1.0]}])
def test_a_state_of_another_version_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="alarm's state"):
        TagState.from_plain(wrong)


def test_an_alarms_tag_always_fits() -> None:
    assert alarm_tag("train/context") == "sidestep/alarm/train/context"
    long = alarm_tag("é" * 512)
    assert len(long.encode()) <= 1024
    assert long.startswith("sidestep/alarm/é")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ewma_weight": 0.0}, "ewma_weight"),
        ({"debounce_met": 6}, "debounce_met"),
        ({"complete_clear": 1e-3}, "complete_critical <= complete_warn <= complete_clear"),
        ({"dimensional_warn": 5.0}, "dimensional_clear <= dimensional_warn"),
        ({"token_warn": 2.0}, "token_clear"),
        ({"lying_loss_fall": 1.5}, "lying_loss_fall"),
        ({"min_images": 0}, "min_images"),
    ],
)
def test_thresholds_must_make_sense(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rules(**wrong)

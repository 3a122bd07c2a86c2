"""A little of `make chaos` in every test run; and its plan is drawn from its seed alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.__main__ import report
from tests.chaos.runner.plan import CAST, KINDS, SHORT_CAST, draw
from tests.chaos.runner.world import play

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

SEED = int(os.environ.get("CHAOS_SEED", "1"))
SECONDS = 6.0


def test_a_plan_is_its_seeds_alone() -> None:
    plan = draw(SEED, 60.0)
    assert plan == draw(SEED, 60.0)
    assert plan.text != draw(SEED + 1, 60.0).text
    assert [fault.at_s for fault in plan.faults] == sorted(fault.at_s for fault in plan.faults)
    assert all(fault.at_s < 60 for fault in plan.faults)
    hour = draw(SEED, 3600.0)
    assert {fault.kind for fault in hour.faults} == set(KINDS)
    assert hour.cast == CAST


def test_some_seconds_of_faults(tmp_path: Path) -> None:
    plan = draw(SEED, SECONDS, SHORT_CAST)
    print(plan.text)
    print(f"CHAOS_SEED={SEED} repeats it")
    outcome = play(plan, print, tmp_path / "kept")
    report(outcome, SECONDS)
    assert outcome.wrong == []
    assert outcome.summary["emits"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
def test_minutes_of_faults(tmp_path: Path, seed: int) -> None:
    plan = draw(seed, 120.0)
    print(plan.text)
    outcome = play(plan, print, tmp_path / "kept")
    report(outcome, 120.0)
    assert outcome.wrong == []

"""The example that collapses on purpose raises its alarm in time; the healthy one raises none."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from tests.support.event_reader import scalars
from tests.support.sandbox import ROOT, Sandbox

pytestmark = pytest.mark.timeout(240)

EXAMPLES = ROOT / "client/examples"
STEPS = 320
EVERY = 10
FIRST_JUDGED = 200
BOTH = ("train/context", "train/target")
WARN, COLLAPSED = 2, 3


def alarm_within() -> int:
    """The number of steps that the example states."""
    found = re.search(
        r"^ALARM_WITHIN.* = (\d+)$", (EXAMPLES / "collapse.py").read_text(), re.MULTILINE
    )
    assert found
    return int(found[1])


def train(sandbox: Sandbox, ways: Sequence[str]) -> dict[str, str]:
    """Train them side by side under one daemon, to the last byte; what each has printed."""
    script, common = EXAMPLES / "digits_jepa.py", ("--steps", str(STEPS), "--no-wandb")
    sandbox.serve()
    trainers = {}
    for way in ways:
        how = () if way == "healthy" else ("--collapse", way)
        trainers[way] = subprocess.Popen(
            [sys.executable, str(script), "--run", way, *common, *how],
            cwd=sandbox.work,
            env=sandbox.env(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    said = {way: trainer.communicate(timeout=200)[0] for way, trainer in trainers.items()}
    assert {way: trainer.returncode for way, trainer in trainers.items()} == dict.fromkeys(
        ways, 0
    ), said
    sandbox.drain()
    return said


def status(sandbox: Sandbox) -> dict[str, dict[str, Any]]:
    """What `status --json` says of each run."""
    done = sandbox.cli("status", "--json")
    assert done.stdout, done.stderr
    return {run["run"]: run for run in json.loads(done.stdout)["runs"]}


def curves(sandbox: Sandbox, run: str) -> dict[str, dict[int, float]]:
    """The run's scalars in its event files: by tag, values by step."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for tag, step, value in scalars(*sandbox.event_files(run)):
        assert step not in found[tag], f"{tag} twice at step {step}"
        found[tag][step] = value
    return found


def texts(sandbox: Sandbox, run: str) -> list[tuple[str, str]]:
    """The alarms' texts in its event files: tag and text."""
    prefix, suffix = "sidestep/alarm/", "/text_summary"
    return [
        (value.tag.removeprefix(prefix).removesuffix(suffix), value.tensor.string_val[0].decode())
        for path in sandbox.event_files(run)
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag.startswith(prefix) and value.tag.endswith(suffix)
    ]


def first(levels: dict[int, float], least: int) -> int:
    """The first step at which an alarm's curve is at `least` or above."""
    return next((step for step, level in sorted(levels.items()) if level >= least), sys.maxsize)


def check_alarm(sandbox: Sandbox, way: str, said: str, reason: str, level: int) -> None:
    """The targets' alarm is at `level` or worse, for this reason, and everybody says so."""
    drawn = curves(sandbox, way)
    levels = drawn["sidestep/alarm/train/target"]
    assert sorted(levels) == list(range(0, STEPS, EVERY))
    assert FIRST_JUDGED <= first(levels, WARN) <= alarm_within()
    last = levels[STEPS - EVERY]
    assert last >= level
    state = {WARN: "WARN", COLLAPSED: "COLLAPSED"}[int(last)]
    found = {each["tag"]: each for each in status(sandbox)[way]["alarms"]}["train/target"]
    assert found["state"] == state
    assert found["reason"].startswith(reason)
    assert FIRST_JUDGED <= found["since_step"] <= alarm_within()
    written = [text for tag, text in texts(sandbox, way) if tag == "train/target"]
    assert written[-1].startswith(f"**{state}** ")
    assert reason in written[-1].lower()
    assert f"alarm: {state} train/target: {reason}" in said
    assert_loss_falls(drawn)


def assert_loss_falls(drawn: dict[str, dict[int, float]]) -> None:
    loss = [value for _, value in sorted(drawn["train/loss"].items())]
    assert len(loss) == STEPS
    assert sum(loss[-40:]) < 0.7 * sum(loss[:40])


def test_complete_collapse_and_a_healthy_run(sandbox: Sandbox) -> None:
    said = train(sandbox, ["healthy", "complete"])
    check_alarm(sandbox, "complete", said["complete"], "variance share", COLLAPSED)
    ill = curves(sandbox, "complete")
    # The trap: layer-normed targets have the norm and the standard deviation that they always had.
    assert ill["train/target_norm"][STEPS - EVERY] == pytest.approx(8.0, rel=1e-3)  # sqrt(64)

    drawn = curves(sandbox, "healthy")
    assert_loss_falls(drawn)
    for tag in BOTH:
        assert drawn[f"sidestep/alarm/{tag}"] == dict.fromkeys(range(0, STEPS, EVERY), 0.0)
    assert texts(sandbox, "healthy") == []
    assert "alarm:" not in said["healthy"]
    now = status(sandbox)
    assert now["healthy"]["alarm"] == "OK"
    assert {each["tag"]: each["state"] for each in now["healthy"]["alarms"]} == dict.fromkeys(
        BOTH, "OK"
    )
    assert now["complete"]["alarm"] == "COLLAPSED"


@pytest.mark.slow
def test_dimensional_and_token_collapse(sandbox: Sandbox) -> None:
    said = train(sandbox, ["dimensional", "token"])
    of = "participation ratio of the images"
    check_alarm(sandbox, "dimensional", said["dimensional"], of, COLLAPSED)
    of = "share of the variance between positions"
    check_alarm(sandbox, "token", said["token"], of, WARN)

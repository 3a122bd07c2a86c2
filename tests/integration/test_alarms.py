"""A collapse, from the trainer's tensors to everybody who is to hear of it; and nothing else."""

from __future__ import annotations

import json
import os
import signal
from collections import defaultdict

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from sidestep import client
from sidestep.proto import Alarm
from tests.support import wandb_file
from tests.support.event_reader import scalars
from tests.support.fixtures import Connect
from tests.support.sandbox import Sandbox, parse_lines
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(180)

WARM = 24
IMAGES, TOKENS, DIMS = 32, 4, 48
WANDB = {"project": "sidestep-test", "mode": "offline"}


def healthy(generator: torch.Generator) -> torch.Tensor:
    """(B, N, D): images differ, and so do the tokens of one; layer-normed as targets are."""
    images = torch.randn(IMAGES, 1, DIMS, generator=generator)
    tokens = torch.randn(IMAGES, TOKENS, DIMS, generator=generator)
    return torch.nn.functional.layer_norm(images + tokens, (DIMS,))


def situations(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Four representations, well until WARM; then two of them collapse and one shrinks."""
    x = healthy(generator)
    if step < WARM:
        return {"constant": x, "healthy": x, "patches": x, "scaled": x}
    constant = torch.nn.functional.layer_norm(torch.linspace(-1, 1, DIMS), (DIMS,))
    return {
        "constant": constant.expand(IMAGES, TOKENS, DIMS),
        "healthy": x,
        "patches": x[:, :1].expand(IMAGES, TOKENS, DIMS),
        "scaled": x * 1e-3,
    }


def emit(made: client.Client, steps: range, generator: torch.Generator) -> None:
    for step in steps:
        found = situations(step, generator)
        made.emit({tag: client.Representation(x) for tag, x in found.items()}, step=step)


def texts(sandbox: Sandbox, run: str) -> dict[str, list[str]]:
    """Every text of the run by its tag, as TensorBoard reads it."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sandbox.event_files(run):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "text":
                    found[value.tag].append(value.tensor.string_val[0].decode())
    return found


COLLAPSES = [("WATCH", WARM), ("COLLAPSED", WARM + 1)]


def test_the_four_situations(sandbox: Sandbox, connect: Connect) -> None:
    daemon = sandbox.serve()
    made = connect("run", wandb=WANDB)
    heard: list[Alarm] = []
    made.on_alarm(heard.append)
    generator = torch.Generator().manual_seed(0)
    emit(made, range(WARM), generator)
    assert made.flush(30)
    assert sandbox.await_run("run")["alarm"] == "OK"
    emit(made, range(WARM, WARM + 6), generator)
    sandbox.await_run("run", alarm="COLLAPSED")
    wait_until(lambda: len(heard) >= 4, 30, lambda: heard)
    status = sandbox.await_run("run")

    # What is well when somebody comes is no news; what is not is told, once.
    late: list[Alarm] = []
    other = connect("run", rank=1, world_size=2, wandb=WANDB)
    wait_until(lambda: sandbox.await_run("run")["clients"] == 2, 30, "no second client")
    other.on_alarm(late.append)
    wait_until(lambda: len(late) >= 2, 30, lambda: late)
    # The trainer is restarted: the states are the run's. It recovers.
    assert made.finish(30)
    made = connect("run", wandb=WANDB)
    made.on_alarm(heard.append)
    for step in range(WARM + 6, WARM + 12):
        x = healthy(generator)
        made.emit({tag: client.Representation(x) for tag in ("constant", "patches")}, step=step)
    sandbox.await_run("run", alarm="OK")
    wait_until(lambda: len(late) >= 4, 30, lambda: late)
    assert made.finish(30)
    assert other.finish(30)
    sandbox.drain()

    said = defaultdict(list)
    for alarm in heard[:4]:
        said[alarm.tag].append((alarm.state, alarm.step))
    assert said == {"constant": COLLAPSES, "patches": COLLAPSES}
    reasons = {alarm.tag: alarm.reason for alarm in heard[:4]}
    assert reasons["constant"].startswith("variance share from 0.9")
    assert reasons["patches"].startswith("share of the variance between images from 0.")
    expected = {("constant", "COLLAPSED"), ("patches", "COLLAPSED")}
    assert {(alarm.tag, alarm.state) for alarm in late[:2]} == expected
    assert {(alarm.tag, alarm.state) for alarm in heard[4:6]} == expected
    assert [(a.state, a.step) for a in late[2:]] == [("OK", WARM + 8)] * 2

    states = {each["tag"]: each for each in status["alarms"]}
    assert {tag: each["state"] for tag, each in states.items()} == {
        "constant": "COLLAPSED",
        "patches": "COLLAPSED",
        "healthy": "OK",
        "scaled": "OK",
    }
    assert states["constant"]["since_step"] == WARM
    check_tensorboard(sandbox)
    check_replay(sandbox, [(a.tag, a.state, a.step) for a in (*heard[:4], *heard[6:])])
    assert daemon.terminate() == 0
    check_wandb(sandbox)


def check_tensorboard(sandbox: Sandbox) -> None:
    shown = texts(sandbox, "run")
    assert set(shown) == {
        "sidestep/alarm/constant/text_summary",
        "sidestep/alarm/patches/text_summary",
    }
    watch, collapse, over = shown["sidestep/alarm/constant/text_summary"]
    assert watch.startswith(f"**WATCH** (before: OK) `constant` at step {WARM}\n\nVariance share")
    assert collapse.startswith("**COLLAPSED** (before: WATCH) `constant`")
    assert f"since step {WARM}" in collapse
    assert "look at constant_variance_share" in collapse.replace("Look", "look")
    assert over.startswith("**OK** (before: COLLAPSED) `constant`")
    curves = defaultdict(list)
    for tag, _step, value in scalars(*sandbox.event_files("run")):
        if tag.startswith("sidestep/alarm/"):
            curves[tag.removeprefix("sidestep/alarm/")].append(value)
    ill = [0.0] * WARM + [1.0] + [3.0] * 7 + [0.0] * 4
    assert curves == {
        "constant": ill,
        "patches": ill,
        "healthy": [0.0] * (WARM + 6),
        "scaled": [0.0] * (WARM + 6),
    }


def check_replay(sandbox: Sandbox, heard: list[tuple[str, str, int]]) -> None:
    """What was recorded tells the same story again."""
    done = sandbox.cli("replay", "run", "--json")
    assert done.returncode == 0, done.stderr
    said = [line for line in parse_lines(done.stdout) if line["event"] == "transition"]
    assert sorted((t["tag"], t["state"], t["step"]) for t in said) == sorted(heard)


def check_wandb(sandbox: Sandbox) -> None:
    alerts = [
        record.alert
        for file in wandb_file.wandb_files(sandbox.logs)
        for record in wandb_file.records(file)
        if record.HasField("alert")
    ]
    found = [(alert.title, alert.level) for alert in alerts]
    assert sorted(found) == sorted(
        (f"{state}: {tag}", level)
        for tag in ("constant", "patches")
        for state, level in (("WATCH", "INFO"), ("COLLAPSED", "ERROR"), ("OK", "INFO"))
    )
    assert all("at step" in alert.text for alert in alerts)


def test_whatever_dies_no_transition_is_lost_or_said_twice(
    sandbox: Sandbox, connect: Connect
) -> None:
    daemon = sandbox.serve()
    made = connect("run")
    heard: list[Alarm] = []
    made.on_alarm(heard.append)
    generator = torch.Generator().manual_seed(1)
    # In the warm-up, before the fall, between its two observations, and after it.
    emit(made, range(8), generator)
    kill_deriver(sandbox)
    emit(made, range(8, WARM), generator)
    assert made.flush(30)
    kill_deriver(sandbox)
    emit(made, range(WARM, WARM + 1), generator)
    assert made.flush(30)
    daemon.kill()
    daemon = sandbox.serve()
    emit(made, range(WARM + 1, WARM + 3), generator)
    sandbox.await_run("run", alarm="COLLAPSED")
    kill_deriver(sandbox)
    daemon.kill()
    daemon = sandbox.serve()
    assert sandbox.await_run("run")["alarm"] == "COLLAPSED"
    emit(made, range(WARM + 3, WARM + 5), generator)
    assert made.finish(60)
    sandbox.drain()

    shown = texts(sandbox, "run")
    for tag in ("constant", "patches"):
        words = [text.split("**")[1] for text in shown[f"sidestep/alarm/{tag}/text_summary"]]
        assert words == ["WATCH", "COLLAPSED"]
        assert [a.state for a in heard if a.tag == tag][-1] == "COLLAPSED"
        assert len({(a.state, a.step) for a in heard if a.tag == tag}) <= 2
        assert sum(a.tag == tag for a in heard) <= 2
    points = [p for p in scalars(*sandbox.event_files("run")) if p[0].startswith("sidestep/alarm/")]
    for tag, fell in (("constant", 4), ("healthy", 0)):
        curve = [(step, value) for name, step, value in points if name.endswith(tag)]
        assert [step for step, _ in curve] == list(range(WARM + 5))
        assert [value for _, value in curve].count(3.0) == fell


def kill_deriver(sandbox: Sandbox) -> None:
    """Once it is there; it may be anywhere in its work."""
    for pid in wait_until(lambda: derivers(sandbox), 30, "no deriver"):
        os.kill(pid, signal.SIGKILL)


def derivers(sandbox: Sandbox) -> list[int]:
    return [
        process.pid
        for process in sandbox.processes()
        if "sidestep.sidecar.derive.worker" in process.cmdline()
    ]


def test_status_and_tail_say_it(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve(SIDESTEP_ALARMS=json.dumps({"warmup_observations": 2}))
    made = connect("run")
    for step in range(8):
        x = torch.full((IMAGES, DIMS), 3.0)
        made.emit({"x": client.Representation(x), "y": 1.0}, step=step)
    sandbox.await_run("run", alarm="COLLAPSED")
    text = " ".join(sandbox.cli("status").stdout.split())
    assert "ALARM COLLAPSED x since step 2: variance share 0" in text
    assert "run: alarm COLLAPSED x" in text
    assert made.finish(30)

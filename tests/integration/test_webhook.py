"""A collapse reaches a webhook: from the trainer's tensors over HTTP, whatever dies in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sidestep import client
from tests.support.fixtures import Connect
from tests.support.hook_server import SECRET, HookServer
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

WARM = 22
SHAPE = 32, 4, 24


def emit(made: client.Client, steps: range, *, collapsed: bool) -> None:
    generator = torch.Generator().manual_seed(steps.start)
    for step in steps:
        x = torch.randn(SHAPE, generator=generator)
        x = x[:1, :1].expand(SHAPE) if collapsed else x
        made.emit({"train/context": client.Representation(x)}, step=step)
    assert made.flush(30)


def told(bodies: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    return [(alarm["state"], alarm["recovered"]) for each in bodies for alarm in each["alarms"]]


def sink(sandbox: Sandbox) -> dict[str, Any]:
    run = sandbox.run_status("vit-b")
    return next((one for one in run["sinks"] if one["name"] == "webhook"), {}) if run else {}


def test_a_collapse_is_told_across_failures_and_the_daemons_death(
    sandbox: Sandbox, connect: Connect
) -> None:
    with HookServer() as server:
        env = {"SIDESTEP_WEBHOOK_URL": server.url}
        server.script(500, (503, {"Retry-After": "600"}))
        daemon = sandbox.serve(**env)
        made = connect("vit-b", tensorboard=False)
        emit(made, range(WARM), collapsed=False)
        emit(made, range(WARM, WARM + 4), collapsed=True)
        # It fails, comes again by itself, and waits then as it was asked to.
        first, again = server.await_bodies(2)
        assert first == again
        assert told([first])[0] == ("COLLAPSED", False)
        assert "*COLLAPSED* `train/context` at step" in first["text"]
        assert first["run"] == "vit-b"
        wait_until(lambda: sink(sandbox).get("retry_in_s"), 20, "it does not wait")
        waiting = sink(sandbox)
        assert waiting["state"] == "degraded"
        assert waiting["lag_records"] == 1
        assert "1 alarm not delivered: http://127.0.0.1/… answered 503" in waiting["error"]
        # The journal is not held up, and a drain does not say that all is well.
        done = sandbox.cli("drain", "--timeout", "0.5")
        assert done.returncode == 1
        assert "webhook" in done.stderr
        daemon.kill()

    with HookServer() as server:
        # Another address, to which another daemon posts at once; killed before it is answered.
        server.script("hang")
        env = {"SIDESTEP_WEBHOOK_URL": server.url}
        daemon = sandbox.serve(**env)
        server.await_bodies(1)
        daemon.kill()
        said = daemon.said()
        sandbox.serve(**env)
        assert server.await_bodies(2) == [first, first]
        # What comes within ten seconds is gathered, but not when somebody waits for it.
        emit(made, range(WARM + 4, WARM + 8), collapsed=False)
        assert made.finish(30)
        sandbox.drain()
        assert told(server.bodies()[2:]) == [("OK", True)]
        recovered = server.bodies()[2]["text"]
        assert recovered.startswith("*RECOVERED* (OK, was COLLAPSED) `train/context`")
        assert sink(sandbox)["lag_records"] == 0
        shown = sandbox.cli("status", "--json")
        assert SECRET not in shown.stdout + shown.stderr + sandbox.said() + said

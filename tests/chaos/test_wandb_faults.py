"""W&B refuses, limits, fails, hangs or is not there: only its sink suffers, and later all arrives.

The wandb package and its wandb-core are the real ones; the server is ours (`wandb_server`), and
treats each run as the test says, so that one daemon has them all at once.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from tests.support.fixtures import Connect
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until
from tests.support.wandb_server import API_KEY, Fault, WandbServer, free_port

pytest.importorskip("wandb")

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

EMITS = 400

FAULTS = {
    "refused": Fault(401),
    "limited": Fault(429, retry_after_s=1),
    "failing": Fault(500),
    "hanging": Fault(hang=True),
    "unfinished": Fault(hang=True, at="finish"),
    "revoked": Fault(401, at="upload"),
}

SAID = {
    "refused": ("failed", r"does not accept the API key.*`wandb login`.*401"),
    "limited": ("degraded", r"fewer requests.*429"),
    "failing": ("degraded", r"trouble of its own.*500"),
    "hanging": ("degraded", r"reachable from here\? If not, mode: offline"),
    "unfinished": ("degraded", r"did not take everything .* is kept in .*\.wandb"),
    "revoked": ("degraded", r"takes no more rows: it does not accept the API key.*401"),
}
"""The state that is seen in `status`, and what it says: enough for a person to act."""


def environment(url: str) -> dict[str, str]:
    """What a user would have set, with timeouts that a test can wait for."""
    return {
        "WANDB_API_KEY": API_KEY,
        "WANDB_BASE_URL": url,
        "WANDB_INIT_TIMEOUT": "3",
        "WANDB_FINISH_TIMEOUT": "3",
    }


def emit_all(connect: Connect, run: str, first: int = 0) -> None:
    made = connect(run, wandb={"id": run, "project": "p"})
    for step in range(first, first + EMITS):
        made.emit({"train/loss": step / 7, "train/lr": step * 1e-8}, step=step)
    assert made.finish(30), "a sink that is broken is no reason for finish to fail"


def emitted(emits: int = EMITS) -> Counter[Any]:
    return points(
        (tag, step, value)
        for step in range(emits)
        for tag, value in (("train/loss", step / 7), ("train/lr", step * 1e-8))
    )


def assert_uploaded(server: WandbServer, run: str, emits: int = EMITS) -> None:
    """At least once; here: exactly once, since no worker was killed while it uploaded."""
    rows = [row for row in server.rows(run) if "train/loss" in row]
    assert [row["global_step"] for row in rows] == list(range(emits))
    assert [row["train/loss"] for row in rows] == [step / 7 for step in range(emits)]
    assert [row["train/lr"] for row in rows] == [step * 1e-8 for step in range(emits)]
    assert run in server.complete


@pytest.mark.parametrize(
    "runs",
    [("refused", "failing", "unfinished"), pytest.param(tuple(FAULTS), marks=pytest.mark.slow)],
    ids=["three", "all"],
)
def test_every_way_in_which_wandb_can_fail(
    sandbox: Sandbox, connect: Connect, runs: tuple[str, ...]
) -> None:
    with WandbServer() as server:
        server.faults.update({run: FAULTS[run] for run in runs})
        daemon = sandbox.serve(**environment(server.url))
        for run in (*runs, "well"):
            emit_all(connect, run)
        for run in (*runs, "well"):
            sandbox.await_sink(run, "closed")
            assert_exactly(read_scalars(sandbox.event_files(run)), emitted())
        await_closed(sandbox, "well")
        assert_uploaded(server, "well")
        for run in runs:
            sink = await_said(sandbox, run)
            assert sink["dropped"] == sink["skipped"] == 0
        answer = json.dumps(sandbox.status())
        shown = "".join(await_shown(sandbox, run) for run in runs)
        assert API_KEY not in answer + shown + daemon.said()
        # It stays visible while it is being tried again.
        seen = {sink_of(sandbox, "failing")["state"] for _ in range(200)}
        assert seen == {"degraded"}

        server.faults.clear()
        for run in set(runs) - {"refused"}:
            sink = await_closed(sandbox, run)
            assert (sink["lag_records"], sink["error"], sink["retry_in_s"]) == (0, None, None)
            assert_uploaded(server, run)
        assert (sink_of(sandbox, "refused")["retry_in_s"] or 0) <= 30  # None: it is being tried
        # What needs a person is tried again after half a minute, or when the daemon is restarted.
        assert daemon.terminate() == 0
        sandbox.serve(**environment(server.url))
        sandbox.drain(120)
        assert_uploaded(server, "refused")


def await_said(sandbox: Sandbox, run: str) -> dict[str, Any]:
    """Wait until the run's sink says what is wrong; on a busy machine W&B may start late first."""
    state, sentence = SAID[run]

    def said() -> bool:
        sink = sink_of(sandbox, run)
        return sink["state"] == state and re.search(sentence, sink["error"] or "") is not None

    wait_until(said, 90, lambda: f"{state}: {sentence}; last: {sink_of(sandbox, run)}", 0.1)
    return sink_of(sandbox, run)


def await_shown(sandbox: Sandbox, run: str) -> str:
    """Wait until `status` says it in words: what is opened and refused again is well in between."""
    state, sentence = SAID[run]
    shown = ""

    def said() -> bool:
        nonlocal shown
        shown = sandbox.cli("status").stdout
        return re.search(f"{run}: wandb {state}.*{sentence}", shown) is not None

    wait_until(said, 60, lambda: shown, 0.1)
    return shown


def await_closed(sandbox: Sandbox, run: str) -> dict[str, Any]:
    def closed() -> bool:
        return sink_of(sandbox, run)["state"] in ("closed", "idle")

    wait_until(closed, 90, lambda: f"W&B not closed: {sink_of(sandbox, run)}", 0.1)
    return sink_of(sandbox, run)


def sink_of(sandbox: Sandbox, run: str) -> dict[str, Any]:
    """Of a daemon that has just started, as soon as it knows."""

    def found() -> list[dict[str, Any]]:
        status = sandbox.run_status(run) or {"sinks": []}
        return [sink for sink in status["sinks"] if sink["name"] == "wandb"]

    return wait_until(found, 10, f"no sink of {run}")[0]


def test_nobody_is_there_and_then_somebody_is(sandbox: Sandbox, connect: Connect) -> None:
    port = free_port()
    sandbox.serve(**environment(f"http://127.0.0.1:{port}"))
    emit_all(connect, "away")
    sandbox.await_sink("away", "closed")
    assert_exactly(read_scalars(sandbox.event_files("away")), emitted())
    sink = sandbox.await_sink("away", "degraded", name="wandb")
    assert sink["error"] is not None
    assert re.search(rf"is http://127.0.0.1:{port} reachable.*refused", sink["error"]), sink
    assert sink["lag_records"] >= EMITS
    # The pause before the next try grows, to half a minute at most.
    pauses: list[float] = []

    def grown() -> bool:
        left = sink_of(sandbox, "away")["retry_in_s"]
        if left and left > max(pauses, default=0):
            pauses.append(left)
        return len(pauses) > 1 and pauses[-1] > 1.4 * pauses[0]

    wait_until(grown, 30, lambda: f"pauses {pauses}", 0.05)
    with WandbServer(port) as server:
        sandbox.drain(120)
        assert_uploaded(server, "away")
        assert sandbox.status()["runs"][0]["sinks"][1]["error"] is None

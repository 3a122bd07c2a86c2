"""The OTLP sink under a real daemon: a receiver that comes late, a worker that dies, the books."""

from __future__ import annotations

import pytest

from tests.support.collector import Collector
from tests.support.fixtures import Connect
from tests.support.prometheus import free_port
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

pytest.importorskip("opentelemetry.sdk")

EMITS = 200


def sent(collector: Collector) -> set[tuple[str, float]]:
    """Tags and values that arrived, however often; the daemon's own left out."""
    return {
        (tag, value)
        for run, tag, _, value in collector.points()
        if run == "demo" and not tag.startswith(("sidestep/", "system/"))
    }


def test_all_arrives_at_a_collector_that_comes_late_from_a_worker_that_dies(
    sandbox: Sandbox, connect: Connect
) -> None:
    port = free_port()
    variables = {
        "SIDESTEP_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "SIDESTEP_OTLP_INTERVAL_S": "0",
        "SIDESTEP_SAMPLE_INTERVAL_S": "0.2",
        "NO_PROXY": "127.0.0.1",
    }
    sandbox.serve(**variables)
    made = connect(run="demo")
    for step in range(EMITS):
        made.emit({"train/loss": step / 3, "val/acc": -step / 7}, step=step)
    assert made.flush(20)
    wait_until(lambda: sandbox.workers("otlp"), 20, "no worker")
    with Collector(port) as collector:
        wait_until(lambda: sent(collector), 30, sandbox.said)
        (worker,) = sandbox.workers("otlp")
        worker.kill()
        for step in range(EMITS, 2 * EMITS):
            made.emit({"train/loss": step / 3, "val/acc": -step / 7}, step=step)
        wait_until(
            lambda: any(tag == "sidestep/lag_otlp" for _, tag, *_ in collector.points()), 30, "own"
        )
        assert made.finish(20)
        sandbox.drain()
        assert sent(collector) == {
            pair
            for step in range(2 * EMITS)
            for pair in (("train/loss", step / 3), ("val/acc", -step / 7))
        }
        steps = [value for *_, value in collector.points("sidestep.step")]
        assert max(steps) == 2 * EMITS - 1
        # With one time and tag there is one value: what came twice is the same point.
        points = {(tag, time_ns): value for _, tag, time_ns, value in collector.points()}
        assert len(points) == len({point[1:] for point in collector.points()})
        sink = sandbox.await_sink("demo", "closed", "otlp")
        assert (sink["lag_records"], sink["skipped"], sink["dropped"]) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_nobody_waits_for_a_collector_that_is_away_and_the_next_daemon_goes_on(
    sandbox: Sandbox, connect: Connect
) -> None:
    port = free_port()
    variables = {"SIDESTEP_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "NO_PROXY": "127.0.0.1"}
    daemon = sandbox.serve(**variables)
    made = connect(run="demo")
    made.emit({"train/loss": 0.5}, step=1)
    assert made.finish(20)
    sink = sandbox.await_sink("demo", "failed", "otlp")
    assert "takes nothing" in sink["error"]
    drained = sandbox.cli("drain", "--timeout", "60")
    assert drained.returncode == 1
    assert "otlp" in drained.stdout + drained.stderr
    assert daemon.terminate() == 0
    with Collector(port) as collector:
        sandbox.serve(**variables)
        sandbox.drain()
        assert sent(collector) == {("train/loss", 0.5)}

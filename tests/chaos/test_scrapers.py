"""Scrapers that hang and flood, an exposition that is killed, a daemon that hangs, a taken port."""

from __future__ import annotations

import re
import socket
import threading
from urllib.parse import urlsplit

import pytest
from psutil import Process

from tests.support.fixtures import Connect
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.prometheus import free_port, get
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

EMITS = 1000
HANGING = 40
FLOODING = 3
RUN = "watched"


def metrics_url(sandbox: Sandbox) -> str:
    """Where the metrics are, once somebody listens there."""
    found = wait_until(
        lambda: sandbox.status()["daemon"]["prometheus"]["url"], 30, "no metrics are served"
    )
    return str(found)


def exposition(sandbox: Sandbox) -> Process | None:
    """The process that serves them."""
    found = [p for p in sandbox.processes() if "sidestep.sidecar.exposition.worker" in p.cmdline()]
    return found[0] if found else None


def scraped(url: str, metric: str) -> float | None:
    """A metric without labels, or of the one run; None while it is not there."""
    try:
        text = get(url)[2]
    except OSError:
        return None
    found = re.search(rf"^{metric}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


def test_scrapers_that_hang_and_flood_delay_nobody(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve(SIDESTEP_PROMETHEUS="127.0.0.1:0")
    url = metrics_url(sandbox)
    place = urlsplit(url).hostname, urlsplit(url).port
    over = threading.Event()

    def flood() -> None:
        while not over.is_set():
            scraped(url, "sidestep_step")

    floods = [threading.Thread(target=flood) for _ in range(FLOODING)]
    hanging = [socket.create_connection(place, timeout=30) for _ in range(HANGING)]
    try:
        for one in hanging:
            try:
                one.sendall(b"GET /metrics HTTP/1.1\r\nHost: localh")
            except OSError:
                pass  # it was one too many, and is closed
        for thread in floods:
            thread.start()
        made = connect(run=RUN)
        for step in range(EMITS):
            made.emit({"a": float(step)}, step=step)
        assert made.flush(30)
        assert sandbox.status()["daemon"]["state"] == "running"
    finally:
        over.set()
        for one in hanging:
            one.close()
        for thread in floods:
            thread.join(30)
    wait_until(lambda: scraped(url, "sidestep_step") == EMITS - 1, 30, "the last step is not shown")
    assert (scraped(url, "sidestep_exposition_refused_connections_total") or 0) > 0
    assert scraped(url, "sidestep_exposition_skipped_records_total") == 0
    # Killed, it is there again, and knows what is still in the journal.
    first = exposition(sandbox)
    assert first is not None
    first.kill()
    wait_until(lambda: exposition(sandbox) not in (None, first), 30, "no new process")
    wait_until(
        lambda: scraped(metrics_url(sandbox), "sidestep_scalar") is not None, 30, "nothing is shown"
    )
    assert made.finish(20)
    sandbox.drain()
    assert_exactly(
        read_scalars(sandbox.event_files(RUN)), points(("a", n, n) for n in range(EMITS))
    )


@pytest.mark.slow
def test_of_a_daemon_that_hangs_the_metrics_say_so(sandbox: Sandbox) -> None:
    daemon = sandbox.serve(SIDESTEP_PROMETHEUS="127.0.0.1:0")
    url = metrics_url(sandbox)
    wait_until(lambda: scraped(url, "sidestep_daemon_responding") == 1, 30, "never well")
    Process(daemon.pid).suspend()
    try:
        wait_until(lambda: scraped(url, "sidestep_daemon_responding") == 0, 30, "not said")
    finally:
        Process(daemon.pid).resume()
    wait_until(lambda: scraped(url, "sidestep_daemon_responding") == 1, 30, "not well again")
    daemon.kill()
    wait_until(lambda: exposition(sandbox) is None, 30, "it outlives its daemon")


@pytest.mark.slow
def test_a_port_that_is_taken_is_said_and_tried_again(sandbox: Sandbox) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        sandbox.serve(SIDESTEP_PROMETHEUS=f"127.0.0.1:{port}")
        wait_until(lambda: sandbox.status()["daemon"]["prometheus"]["error"], 30, "no error")
        assert "in use" in sandbox.status()["daemon"]["prometheus"]["error"]
        for command in ("status", "doctor"):
            assert "Prometheus is shown nothing: Address already in use" in " ".join(
                sandbox.cli(command).stdout.split()
            )
    assert metrics_url(sandbox) == f"http://127.0.0.1:{port}/metrics"
    assert sandbox.said().count("cannot listen") == 1

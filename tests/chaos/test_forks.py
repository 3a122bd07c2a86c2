"""A trainer forks while it emits, at any moment: no child hangs, and none speaks for its parent."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.forking_trainer import SAMPLES, WORKERS
from tests.support.oracle import assert_balanced, assert_exactly, points, read_scalars
from tests.support.sandbox import ROOT, Sandbox

pytest.importorskip("torch")
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]


def test_forks_at_any_moment(sandbox: Sandbox) -> None:
    check_forks(sandbox, forks=60, epochs=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_forks(sandbox: Sandbox) -> None:
    check_forks(sandbox, forks=1000, epochs=20)


def check_forks(sandbox: Sandbox, forks: int, epochs: int) -> None:
    """Plain forks in three threads and a DataLoader's in one, while two threads emit."""
    daemon = sandbox.serve()
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.forking_trainer", str(forks), str(epochs)],
        cwd=ROOT,
        env=sandbox.env(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    print(f"{forks} forks and {epochs * WORKERS} workers while {told['emits']} emits were made")
    assert told["codes"] == [0] * forks, "a child hung, or its client was no no-op"
    # Each worker counts its own, from one on: it is a no-op of its own.
    per_worker = SAMPLES // WORKERS
    assert sorted(told["samples"]) == sorted([*range(1, per_worker + 1)] * WORKERS * epochs)

    assert told["finish"]
    assert_balanced(told)
    assert (told["held"], told["dropped"], told["rejected"]) == (0, 0, 0)
    status = sandbox.await_run("forks", state="finished", clients=0)
    assert status["attempts"] == 1, "somebody else has introduced himself"
    assert "duplicate" not in daemon.said()
    sandbox.drain()
    rows = (
        (f"thread/{number}", n, float(n))
        for number, emits in enumerate(told["emits"])
        for n in range(emits)
    )
    assert_exactly(read_scalars(sandbox.event_files("forks")), points(rows))

"""Emits from threads, signal handlers, finalizers, atexit and a dying interpreter: all well."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.oracle import assert_exactly, points, read_scalars, read_values
from tests.support.sandbox import ROOT, Sandbox

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(240)]

TEXT_EVERY = 100


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("return", 0),
        pytest.param("raise", 1, marks=pytest.mark.slow),
        pytest.param("exit", 3, marks=pytest.mark.slow),
    ],
)
def test_emits_from_everywhere(sandbox: Sandbox, end: str, code: int) -> None:
    sandbox.serve()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-m", "tests.support.interrupted_trainer", end],
        cwd=ROOT,
        env=sandbox.env(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("Error") == (2 if end == "raise" else 0), done.stderr
    assert "Exception ignored" not in done.stderr
    counts = json.loads(done.stdout)
    assert counts.pop("balance") == 0
    assert counts["handler"] > 10
    assert counts["finalizer"] > 100

    status = sandbox.await_run("everywhere", state="finished", clients=0)
    sandbox.drain()
    files = sandbox.event_files("everywhere")
    found = read_scalars(files)
    late = {point: many for point, many in found.items() if point[0].startswith("exit/")}
    emitted = points(
        (place, n, float(n))
        for place, many in counts.items()
        for n in range(many)
        if not (n % TEXT_EVERY == TEXT_EVERY - 1 and place.startswith(("thread/", "main")))
    )
    for point in late:
        del found[point]
    assert_exactly(found, emitted)
    assert ("exit/before-finish", 0, 0) in late
    # What comes after the client's end is no record; the rest is there once.
    assert set(late.values()) == {1}
    assert not any(tag == "exit/after-finish" for tag, _, _ in late)
    books = status["records"]
    texts = len([1 for _, _, value in read_values(files) if value.tag.endswith("text_summary")])
    assert books["durable"] == found.total() + len(late) + texts
    assert (books["held"], books["dropped"]) == (0, 0)

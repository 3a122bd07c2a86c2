"""`drain`: never 0 before everything is written, 1 at the timeout, and what it costs to wait."""

from __future__ import annotations

import time

import pytest

from sidestep import client
from tests.support.fixtures import Connect, Train
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.trainer import EMITTED

pytestmark = pytest.mark.timeout(120)


def test_nothing_to_write(sandbox: Sandbox) -> None:
    sandbox.serve()
    began = time.monotonic()
    assert sandbox.cli("drain").returncode == 0
    assert time.monotonic() - began < 10


def test_nothing_to_write_and_no_daemon(sandbox: Sandbox) -> None:
    assert sandbox.cli("drain").returncode == 0
    # One that it may have started has nobody to wait for.
    sandbox.await_no_daemon(timeout_s=8)


def test_never_early(sandbox: Sandbox, connect: Connect) -> None:
    """Asked again and again in the middle of a run: what was durable is in the file after it."""
    sandbox.serve()
    made = connect("early")
    for part in range(4):
        for step in range(part * 1500, (part + 1) * 1500):
            made.emit({"a": step / 3, "b": step / 7}, step=step)
        assert made.flush(30)
        sandbox.drain()
        expected = points(
            row
            for step in range((part + 1) * 1500)
            for row in (("a", step, step / 3), ("b", step, step / 7))
        )
        assert_exactly(read_scalars(sandbox.event_files("early")), expected)
    assert made.finish(30)


def test_waits_for_what_the_deriver_makes(sandbox: Sandbox, connect: Connect) -> None:
    import torch

    sandbox.serve()
    made = connect("derived")
    x = torch.randn(256, 384)
    for step in range(10):
        made.emit({"x": client.Representation(x, spectrum_every=1)}, step=step)
    assert made.flush(30)
    sandbox.drain()
    found = read_scalars(sandbox.event_files("derived"))
    for name in ("std", "norm", "rank", "pr"):
        steps = sorted(step for tag, step, _ in found.elements() if tag == f"x_{name}")
        assert steps == list(range(10)), name
    assert made.finish(30)


def test_leftovers_without_a_daemon(sandbox: Sandbox, train: Train) -> None:
    """A dead client's outbox and a dead daemon's journal: `drain` starts a daemon for them."""
    daemon = sandbox.serve()
    journalled = train(run="journalled", emits=3000, tags=5, connect={"autostart": False})
    journalled.await_state(EMITTED)
    daemon.kill()
    left = train(run="left", emits=500, tags=5, end="wait", connect={"autostart": False})
    left.await_state(EMITTED)
    left.kill()
    journalled.kill()
    assert sandbox.control.daemon() is None
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("left")), left.emitted(500))
    assert_exactly(read_scalars(sandbox.event_files("journalled")), journalled.emitted(3000))


def test_timeout_is_kept_and_says_what_is_left(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.logs.write_text("a file where the directory should be")
    sandbox.serve()
    made = connect("left")
    made.emit({"a": 1.0}, step=0)
    assert made.flush(30)
    sandbox.await_sink("left", "degraded")
    began = time.monotonic()
    done = sandbox.cli("drain", "--timeout", "1")
    assert done.returncode == 1
    assert time.monotonic() - began < 15
    assert "left" in done.stderr
    assert "tensorboard" in done.stderr


def test_what_an_earlier_client_asked_for_goes_on(sandbox: Sandbox, connect: Connect) -> None:
    """A later client of the run that wants no TensorBoard takes it from nobody."""
    sandbox.serve()
    first = connect("shared")
    first.emit({"first": 1.0}, step=1)
    assert first.flush(30)
    sandbox.drain()
    second = connect("shared", tensorboard=False)
    second.emit({"second": 2.0}, step=2)
    assert second.finish(30)
    assert first.finish(30)
    sandbox.drain()
    expected = points([("first", 1, 1.0), ("second", 2, 2.0)])
    assert_exactly(read_scalars(sandbox.event_files("shared")), expected)
    sandbox.await_sink("shared", "closed")

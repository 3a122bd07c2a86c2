"""A child process: told, heard, started again after it died, with growing pauses."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidestep.sidecar.supervision.processes import Child
from tests.support.clock import Clock

_ECHO = """
import socket, sys
from sidestep.sidecar.supervision.channel import Channel, ChannelClosedError
channel = Channel(socket.socket(fileno=int(sys.argv[1])))
try:
    while True:
        for message in channel.receive():
            if message.get("die") is not None:
                sys.exit(message["die"])
            channel.send({"echo": message})
except ChannelClosedError:
    sys.exit(0)
"""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Iterator[Child]:
    (tmp_path / "echo_child.py").write_text(_ECHO)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    child = Child(["echo_child"], lambda: {"hello": 1}, clock)
    yield child
    child.kill()


def _hear(child: Child) -> list[dict[str, Any]] | None:
    assert select.select([child.fileno()], [], [], 20)[0], "the child says nothing"
    return child.hear()


def _await_end(child: Child) -> None:
    while (heard := _hear(child)) is not None:
        assert isinstance(heard, list)


def test_it_is_greeted_and_answers(child: Child) -> None:
    assert child.ensure()
    assert not child.ensure()
    assert _hear(child) == [{"echo": {"hello": 1}}]
    child.tell({"x": [1, 2.5, b"b"]})
    assert _hear(child) == [{"echo": {"x": [1, 2.5, b"b"]}}]


def test_it_starts_again_after_its_death_with_growing_pauses(child: Child, clock: Clock) -> None:
    pauses: list[float] = []
    for _ in range(4):
        assert child.ensure()
        _hear(child)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        _await_end(child)
        assert child.last_exit == -signal.SIGKILL
        waited = 0.0
        while not child.ensure():
            clock.now += 0.125
            waited += 0.125
            assert waited < 60
        pauses.append(waited)
        _hear(child)
        child.tell({"die": 1})
        _await_end(child)
        clock.now += 60
    assert pauses[0] < pauses[-1]


def test_one_that_ends_well_may_start_again_at_once(child: Child) -> None:
    child.ensure()
    child.tell({"die": 0})
    _await_end(child)
    assert child.last_exit == 0
    assert child.ensure()


def test_a_message_to_nobody_is_no_error(child: Child) -> None:
    child.tell({"x": 1})
    assert child.hear() is None
    assert child.reap(0.0)

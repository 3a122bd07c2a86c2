"""The door's own bounds, beside those that `chaos/test_flood.py` tries from outside."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidestep.proto import RemoteProtocolError
from sidestep.sidecar.door import Door, Manners
from sidestep.sidecar.zmtp import GREETING, Connection

PING = b"\x04\x0b\x04PING\x00\x10abcd"
BOUND = 64 << 10


@pytest.fixture
def refused() -> list[str]:
    return []


@pytest.fixture
def door(tmp_path: Path, refused: list[str]) -> Iterator[Door]:
    manners = Manners("ROUTER", ("DEALER",), 4, 1000, unsent_bytes=BOUND)
    made = Door([str(tmp_path / "s")], manners, lambda error, _: refused.append(error.code))
    yield made
    made.close()


def test_who_asks_without_end_and_reads_nothing_is_put_out(
    door: Door, tmp_path: Path, refused: list[str]
) -> None:
    most = 0
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(tmp_path / "s"))
        peer.sendall(Connection("DEALER", ("ROUTER",), 1000).answers)
        door.receive(10, 1 << 20)
        assert len(door) == 1
        peer.setblocking(False)
        for _ in range(1000):
            try:
                peer.send(PING * 4000)
            except BlockingIOError:
                pass
            except OSError:
                break
            door.receive(10, 1 << 20)
            most = max([most, *(len(one.unsent) for one in door._peers.values())])
    assert len(door) == 0
    assert refused == ["too_slow"]
    assert most <= BOUND


def test_a_ping_is_answered_with_its_context() -> None:
    connection = Connection("ROUTER", ("DEALER",), 1000)
    greeted = connection.answers
    assert greeted.startswith(GREETING)
    connection.answers = b""
    connection.receive(Connection("DEALER", ("ROUTER",), 1000).answers + PING)
    assert connection.answers == b"\x04\x09\x04PONGabcd"
    with pytest.raises(RemoteProtocolError):
        connection.receive(b"\x08\x00")

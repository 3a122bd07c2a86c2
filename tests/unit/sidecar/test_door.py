"""The door's own bounds, beside those that `chaos/test_flood.py` tries from outside."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sidestep.proto import RemoteProtocolError
from sidestep.sidecar.peers import door as door_module
from sidestep.sidecar.peers.door import Door, Manners
from sidestep.sidecar.peers.zmtp import GREETING, Connection, framed

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


@pytest.mark.parametrize("ends", [True, False])
def test_a_crowd_that_speaks_at_once_is_heard_one_after_the_other(
    tmp_path: Path, refused: list[str], monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """As many frames as do not fit side by side; those that never end are put out."""
    monkeypatch.setattr(door_module, "_HELD_BYTES", 1 << 20)
    manners = Manners("ROUTER", ("DEALER",), 40, 1 << 20)
    door = Door([str(tmp_path / "s")], manners, lambda error, _: refused.append(error.code))
    introduction = Connection("DEALER", ("ROUTER",), 1000).answers
    frame = framed([bytes(100_000)])
    left: dict[socket.socket, bytes] = {}
    try:
        for _ in range(20):
            left[(peer := socket.socket(socket.AF_UNIX))] = introduction + frame
            peer.connect(str(tmp_path / "s"))
            peer.setblocking(False)
        door.receive(100, 1 << 20)
        assert len(door) == 20
        came = 0
        deadline = time.monotonic() + 20
        while came + len(refused) < (20 if ends else 10) and time.monotonic() < deadline:
            for peer, data in left.items():
                # Bit by bit, as it is with a small socket buffer; or all but the end.
                bit = data[:60_000] if ends else data[:-1][:60_000]
                with suppress(OSError):
                    left[peer] = data[peer.send(bit) :] if bit else data
            came += len(door.receive(100, 1 << 20))
        if ends:
            assert (came, refused) == (20, [])
        else:
            assert came == 0
            assert set(refused) == {"too_slow"}
    finally:
        door.close()
        for peer in left:
            peer.close()


def test_a_ping_is_answered_with_its_context() -> None:
    connection = Connection("ROUTER", ("DEALER",), 1000)
    greeted = connection.answers
    assert greeted.startswith(GREETING)
    connection.answers = b""
    connection.receive(Connection("DEALER", ("ROUTER",), 1000).answers + PING)
    assert connection.answers == b"\x04\x09\x04PONGabcd"
    with pytest.raises(RemoteProtocolError):
        connection.receive(b"\x08\x00")

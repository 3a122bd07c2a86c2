"""The door over real Unix sockets: who is let in, who is put out, and what is read of whom."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from sidestep.proto import RemoteProtocolError
from sidestep.sidecar.peers.door import Door, Manners
from tests.support.hostile import Raw, head
from tests.support.waiting import wait_until

MANNERS = Manners("ROUTER", ("DEALER",), 8, 1 << 20)


class House:
    """A door, and what comes in."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="door", dir="/tmp"))
        self.path = str(self.folder / "d.sock")
        self.refused: list[str] = []
        self.came: list[tuple[bytes, list[bytes]]] = []
        self.doors: list[Door] = []

    def open(self, manners: Manners = MANNERS) -> Door:
        def refused(error: RemoteProtocolError, _data: bytes) -> None:
            self.refused.append(error.code)

        self.doors.append(Door([self.path], manners, refused, lambda _: b"farewell"))
        return self.doors[-1]

    def serve(self, door: Door, until: Callable[[], object], timeout_s: float = 20) -> None:
        def served() -> object:
            self.came += door.receive(100, 4 << 20)
            return until()

        wait_until(served, timeout_s, "it does not come")


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    for door in made.doors:
        door.close()
    Path(made.path).unlink(missing_ok=True)
    made.folder.rmdir()


@pytest.fixture
def dealer(house: House) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{house.path}")
        yield socket


def test_a_conversation(house: House, dealer: zmq.Socket[bytes]) -> None:
    door = house.open()
    sent = [bytes([i]) * (i * 5000) for i in range(50)]
    for message in sent:
        dealer.send(message)
    house.serve(door, lambda: len(house.came) == 50)
    assert [message for _, (message,) in house.came] == sent
    (identity,) = {identity for identity, _ in house.came}
    assert door.send(identity, [b"answer"])
    assert dealer.recv() == b"answer"
    big = [os.urandom(3 << 20), b"", b"x"]
    assert door.send(identity, big)
    got: list[bytes] = []

    def received() -> bool:
        if dealer.poll(0):
            got.extend(dealer.recv_multipart())
        return bool(got)

    house.serve(door, received)
    assert got == big
    assert not door.send(b"nobody", [b"x"])


def test_who_is_silent_is_put_out_and_who_speaks_stays(
    house: House, dealer: zmq.Socket[bytes]
) -> None:
    door = house.open(replace(MANNERS, stranger_s=1.0, silent_s=60.0))
    dealer.send(b"hello")
    with Raw(house.path) as silent, Raw(house.path).introduce() as hasty:
        house.serve(door, lambda: house.came)
        door.admit(house.came[0][0])
        house.serve(door, lambda: len(door) == 1)
        assert silent.heard() != b""  # our greeting, and then the end
        assert hasty.heard() != b""
    assert house.refused == []
    dealer.send(b"again")
    house.serve(door, lambda: len(house.came) == 2)


def test_a_stranger_makes_room_and_a_client_does_not(
    house: House, dealer: zmq.Socket[bytes]
) -> None:
    door = house.open(replace(MANNERS, max_connections=3))
    dealer.send(b"hello")
    house.serve(door, lambda: house.came)
    door.admit(house.came[0][0])
    raws = [Raw(house.path) for _ in range(10)]
    house.serve(door, lambda: door.turned_away == 8)
    assert len(door) == 3
    dealer.send(b"still here")
    house.serve(door, lambda: len(house.came) == 2)
    for raw in raws:
        raw.socket.close()


def test_everybody_in_a_rush_is_answered(house: House) -> None:
    """More at once than there is room for: nobody is put out before there is an answer."""
    door = house.open(replace(MANNERS, max_connections=5))
    answered: set[bytes] = set()
    with zmq.Context() as context:
        rush = [context.socket(zmq.DEALER) for _ in range(40)]
        for number, one in enumerate(rush):
            one.setsockopt(zmq.LINGER, 0)
            one.connect(f"ipc://{house.path}")
            one.send(bytes([number]))

        def served() -> bool:
            for identity, (message,) in house.came:
                door.send(identity, [message])
            house.came.clear()
            for one in rush:
                if one.poll(0):
                    answered.add(one.recv())
            return len(answered) == 40

        house.serve(door, served, 30)
        for one in rush:
            one.close()


def test_one_who_sends_much_does_not_keep_others_waiting(
    house: House, dealer: zmq.Socket[bytes]
) -> None:
    door = house.open()
    with Raw(house.path).introduce() as busy:
        busy.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                busy.socket.send(b"\x00\x01x" * 10_000)
        house.serve(door, lambda: len(house.came) > 1000)
        dealer.send(b"me")
        # From the moment that it has arrived, two rounds at most.
        house.serve(door, lambda: len(door) == 2 and any(m == [b"me"] for _, m in house.came))
        own = [at for at, (_, message) in enumerate(house.came) if message == [b"me"]]
        assert len(house.came) - own[0] <= 200


def test_who_does_not_read_loses_messages_alone(house: House, dealer: zmq.Socket[bytes]) -> None:
    door = house.open(replace(MANNERS, unsent_bytes=1 << 16))
    with Raw(house.path).introduce() as deaf:
        deaf.say(b"\x00\x01x")
        dealer.send(b"me")
        house.serve(door, lambda: len(house.came) == 2)
        mine = next(identity for identity, message in house.came if message == [b"me"])
        other = next(identity for identity, message in house.came if message != [b"me"])
        taken = 0
        while door.send(other, [bytes(10_000)]):
            taken += 1
            assert taken < 1000
        assert door.unsent
        assert door.send(mine, [b"y"])
        assert dealer.recv() == b"y"


def test_a_frame_that_is_too_large_is_given_up(house: House) -> None:
    door = house.open()
    with Raw(house.path).introduce() as raw:
        house.serve(door, lambda: len(door) == 1)
        raw.say(head(0, (1 << 20) + 1))
        house.serve(door, lambda: not len(door))
        assert raw.heard().endswith(b"farewell")
    assert house.refused == ["too_large"]


def test_what_a_dead_daemon_left_is_replaced(house: House) -> None:
    first = house.open()
    house.open()  # the lock says that the first is dead
    first.close()
    house.doors.remove(first)
    assert Path(house.path).exists()  # it is not the first one's any more

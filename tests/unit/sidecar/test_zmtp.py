"""One end of a ZMTP connection: bytes in any pieces become messages, or a RemoteProtocolError."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, strategies as st

from sidestep.proto import RemoteProtocolError
from sidestep.sidecar.peers.zmtp import Connection, framed
from tests.support.hostile import GREETING, ready

MAX = 1000


def connection(max_parts: int = 1) -> Connection:
    return Connection("ROUTER", ("DEALER", "REQ"), MAX, max_parts)


def fed(one: Connection, data: bytes, size: int) -> list[list[bytes]]:
    found: list[list[bytes]] = []
    for at in range(0, len(data), size):
        found += one.receive(data[at : at + size])
    return found


@given(st.lists(st.lists(st.binary(max_size=MAX), min_size=1, max_size=3), max_size=6))
def test_what_is_sent_is_received_in_any_pieces(messages: list[list[bytes]]) -> None:
    data = GREETING + ready() + b"".join(framed(message) for message in messages)
    for size in (1, 7, len(data)):
        one = connection(max_parts=3)
        assert fed(one, data, size) == messages
        assert one.ready
        assert one.held_bytes == 0


def test_it_greets_first_and_answers_a_ping() -> None:
    one = connection()
    assert one.answers == GREETING + ready(b"ROUTER")
    one.answers = b""
    one.receive(GREETING + ready(b"REQ") + b"\x04\x0b\x04PING\x00\x0acont")
    assert one.answers == b"\x04\x09\x04PONGcont"


@pytest.mark.parametrize("part", [b"\x01\x00", b"\x01\x05hello"])
def test_a_message_has_as_many_parts_as_it_may(part: bytes) -> None:
    one = connection(max_parts=3)
    assert one.receive(GREETING + ready() + part * 2 + b"\x00\x01x") == [[part[2:]] * 2 + [b"x"]]
    with pytest.raises(RemoteProtocolError, match="over 3"):
        one.receive(part * 3)


def test_what_is_held_is_bounded() -> None:
    one = connection(max_parts=3)
    one.receive(GREETING + ready() + b"\x00\xff" + bytes(254))
    assert one.held_bytes == 256
    with pytest.raises(RemoteProtocolError, match="at most 1000"):
        connection().receive(GREETING + ready() + b"\x02" + (MAX + 1).to_bytes(8, "big"))
    with pytest.raises(RemoteProtocolError, match="at most 4096"):
        connection().receive(GREETING + b"\x06" + (4097).to_bytes(8, "big"))


def test_any_bytes_are_messages_or_an_error() -> None:
    rng = random.Random(3)
    good = GREETING + ready() + framed([b"one"]) + framed([b"x" * 300]) + b"\x04\x05\x04PING"
    errors: list[RemoteProtocolError] = []
    for _ in range(5000):
        data = bytearray(good[: rng.randrange(len(good) + 1)])
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(len(data))] = rng.randrange(256)
        one = connection()
        try:
            for message in fed(one, bytes(data), rng.choice([1, 13, 999])):
                assert [type(frame) for frame in message] == [bytes]
        except RemoteProtocolError as error:
            errors.append(error)
        assert one.held_bytes <= len(data)
    assert 500 < len(errors) < 4500
    assert {error.code for error in errors} <= {"no_protocol", "too_large", "multipart"}
    assert max(len(str(error)) for error in errors) < 300

"""Bytes from a peer are messages within the bounds, or its end; little of them is held."""

from __future__ import annotations

import random
from collections.abc import Iterator

from sidestep.proto import RemoteProtocolError
from sidestep.sidecar.peers.zmtp import GREETING, Connection, framed

from ..mutator import mutate_bytes
from ..packing import join, pieces, pieces_mutator

_MAX_FRAME_BYTES = 1000
_MAX_PARTS = 2
_MAX_HELD_BYTES = 4096 + 9 + _MAX_PARTS * _MAX_FRAME_BYTES


def check(data: bytes) -> None:
    """What comes, in the pieces in which it is read."""
    peer = Connection("ROUTER", ("DEALER", "REQ"), _MAX_FRAME_BYTES, _MAX_PARTS)
    heard = len(peer.answers)
    for _, piece in pieces(data):
        if not piece:
            continue  # nothing was read: it has gone
        heard += len(piece)
        try:
            messages = peer.receive(piece)
        except RemoteProtocolError as error:
            if not error.code or len(str(error)) > 1000:
                raise AssertionError("no refusal that may travel back") from error
            break
        for message in messages:
            assert peer.ready
            assert 0 < len(message) <= _MAX_PARTS
            assert all(len(frame) <= _MAX_FRAME_BYTES for frame in message)
            again = Connection("DEALER", ("ROUTER",), _MAX_FRAME_BYTES, _MAX_PARTS)
            ready = Connection("ROUTER", ("DEALER",), _MAX_FRAME_BYTES).answers
            assert again.receive(ready + framed(message)) == [message]
        assert peer.held_bytes <= _MAX_HELD_BYTES
        assert len(peer.answers) <= 4 * heard, "no more is answered than was asked"


mutate = pieces_mutator(mutate_bytes)


def seeds() -> Iterator[bytes]:
    """Peers as they should be, whole and byte by byte, pings, and too much of everything."""
    dealer = Connection("DEALER", ("ROUTER",), _MAX_FRAME_BYTES).answers
    ping = b"\x04\x0b\x04PING\x00\x10abcd"
    said = dealer + framed([b"one"]) + ping + framed([b"", b"x" * 300])
    yield join([(0, said)])
    yield join((0, bytes([byte])) for byte in said)
    yield join([(0, dealer[:70]), (0, dealer[70:]), (0, b"\x00\x05ab"), (0, b"cde")])
    yield join([(0, dealer), (0, framed([b"1", b"2", b"3"]))])
    yield join([(0, dealer), (0, b"\x02" + (1 << 62).to_bytes(8, "big"))])
    yield join([(0, dealer + ping * 50)])
    yield join([(0, GREETING), (0, framed([b"too early"]))])
    yield join([(0, b"GET / HTTP/1.1\r\n\r\n")])
    yield join([(0, dealer.replace(b"DEALER", b"PUBLIC"))])
    yield join([(0, dealer), (0, b"\x04\x08\x05ERROR\x02no")])
    yield join([(0, random.Random(0).randbytes(100))])

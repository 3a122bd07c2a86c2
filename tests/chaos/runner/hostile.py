"""Peers that mean harm: frames that are no protocol, or nearly one, connections full of junk."""

from __future__ import annotations

import random
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import zmq

from sidestep.proto import Batch, Bye, Gap, Hello, Message, Part, Ping, RunSpec, Tags, encode

HOSTILE: Final = "hostile"
"""The run that such a peer says it is of."""

_FRAMES: Final = 200
_LINGER_MS: Final = 300


def junk_frames(endpoint: str, logs: Path, seed: int) -> int:
    """Send frames as a peer that knows the protocol and breaks it; how many.

    It introduces itself as a client of the run "hostile", so that some of it gets far.
    """
    choose = random.Random(seed)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    peer = context.socket(zmq.DEALER)
    peer.setsockopt(zmq.LINGER, _LINGER_MS)
    peer.setsockopt(zmq.SNDHWM, 2 * _FRAMES)
    sent = 0
    try:
        peer.connect(endpoint)
        peer.send(encode(_hello(choose, logs)), zmq.DONTWAIT)
        for _ in range(_FRAMES):
            frames = [_frame(choose, logs) for _ in range(choose.choice((1, 1, 1, 1, 2, 40)))]
            with suppress(zmq.Again):
                peer.send_multipart(frames, zmq.DONTWAIT)
                sent += 1
    finally:
        context.destroy(linger=_LINGER_MS)
    return sent


def _hello(choose: random.Random, logs: Path) -> Hello:
    spec = RunSpec(HOSTILE, str(logs))
    return Hello(choose.randbytes(16), choose.getrandbits(60), 1, spec)


def _frame(choose: random.Random, logs: Path) -> bytes:
    """A frame: as it should be, damaged, cut, or noise."""
    whole = encode(choose.choice(_messages(choose, logs)))
    match choose.randrange(5):
        case 0:
            return whole
        case 1:
            return whole[: choose.randrange(len(whole))]
        case 2:
            at = choose.randrange(len(whole))
            return whole[:at] + choose.randbytes(choose.randrange(1, 9)) + whole[at + 1 :]
        case 3:
            return whole[:4] + choose.randbytes(choose.randrange(2000))
    return choose.randbytes(choose.randrange(2000))


def _messages(choose: random.Random, logs: Path) -> list[Message]:
    first = choose.choice((0, 1, 2, 1000, (1 << 62) - 1))
    return [
        _hello(choose, logs),
        Tags(choose.randrange(5), (("a", "b"), ("c",))),
        Batch(max(1, first), first + 1, choose.randbytes(choose.randrange(1, 500))),
        Part(max(1, first), 0, 1 << choose.randrange(7, 27), choose.randbytes(100)),
        Gap(max(1, first), first + choose.randrange(1 << 40), "gone"),
        Ping(),
        Bye(first),
    ]


def junk_connections(path: str, choose: random.Random) -> list[socket.socket]:
    """Connections to a Unix socket that say nothing, half a greeting, or noise; all stay open."""
    found: list[socket.socket] = []
    deadline = time.monotonic() + 1.0
    for _ in range(30):
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(0.1)
        try:
            made.connect(path)
            greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
            said = choose.choice((b"", greeting[:20], greeting, choose.randbytes(300)))
            made.sendall(said + (choose.randbytes(5000) if choose.random() < 0.5 else b""))
        except OSError:
            made.close()  # nobody listens, or it has had enough
        else:
            found.append(made)
        if time.monotonic() > deadline:
            break
    return found

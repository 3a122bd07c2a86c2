"""Peers that do not behave: raw sockets that speak as much ZMTP as told, and clients by hand."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress
from typing import Self

import psutil
import zmq

from sidestep.proto import Ack, Batch, Hello, Message, RunSpec, Tags, Welcome, decode, encode
from sidestep.proto.records import Scalars, encode_scalars

from .sandbox import Sandbox
from .waiting import wait_until

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE, LONG, COMMAND = 1, 2, 4
MIB = 1 << 20


def ready(kind: bytes = b"DEALER") -> bytes:
    """The READY command of a socket of this type."""
    body = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    return bytes([COMMAND, len(body)]) + body


def head(flags: int, size: int) -> bytes:
    """What stands before a frame of `size` bytes."""
    return bytes([flags | LONG]) + struct.pack(">Q", size)


class Raw:
    """A connection to a Unix socket that says what it is told to."""

    def __init__(self, endpoint: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(endpoint.removeprefix("ipc://"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def introduce(self, kind: bytes = b"DEALER") -> Self:
        """Greet as a ZeroMQ socket does."""
        self.socket.sendall(GREETING + ready(kind))
        return self

    def say(self, data: bytes) -> bool:
        """Send; False when the other side has closed."""
        with suppress(ConnectionError):
            self.socket.sendall(data)
            return True
        return False

    def heard(self) -> bytes:
        """All that comes until the other side closes, within 20 s."""
        found = b""
        with suppress(ConnectionError):
            while data := self.socket.recv(1 << 16):
                found += data
        return found


class Peer:
    """A client by hand, over a real ZeroMQ socket."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        run: RunSpec,
        uuid: bytes = b"h" * 16,
        **hello: int | str,
    ) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self.hello = Hello(uuid, 1, 1, run, **hello)  # type: ignore[arg-type]

    def say(self, message: Message) -> None:
        self.socket.send(encode(message))

    def next(self, timeout_s: float = 20) -> Message:
        assert self.socket.poll(1000 * timeout_s), "no answer"
        return decode(self.socket.recv())

    def ask(self, message: Message) -> Message:
        self.say(message)
        return self.next()

    def greet(self, *tags: str) -> Welcome:
        """HELLO, and TAGS of one set if there are any."""
        welcome = self.ask(self.hello)
        while isinstance(welcome, Ack):  # of a welcome before this one
            welcome = self.next()
        assert isinstance(welcome, Welcome), welcome
        if tags:
            self.say(Tags(0, (tags,)))
        return welcome

    def close(self) -> None:
        self.socket.close(linger=0)


def batch(first: int, last: int) -> Batch:
    """Records `first` to `last` of tag set 0, one number each: its own."""
    rows = (encode_scalars(Scalars(0, seq, 1, (seq / 7,))) for seq in range(first, last + 1))
    return Batch(first, last, b"".join(rows))


class MemoryOf:
    """How much a process has grown since, at the most that was seen."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._before = self._process.memory_info().rss
        self.grown_bytes = 0

    def look(self) -> int:
        """Look now; bytes that it has grown at the most."""
        now = self._process.memory_info().rss - self._before
        self.grown_bytes = max(self.grown_bytes, now)
        return self.grown_bytes

    def look_for(self, seconds: float) -> int:
        """Look for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.look()
            time.sleep(0.01)
        return self.grown_bytes


def refused(sandbox: Sandbox, what: str) -> dict[str, int]:
    """How many "frames", "records" or "clients" the daemon has refused, by why."""
    found: dict[str, int] = sandbox.status()["daemon"]["refused"][what]
    return found


def await_refused(sandbox: Sandbox, what: str, **wanted: int) -> None:
    """Wait until it is so: a peer hears of it a moment before `status` does."""
    wait_until(lambda: refused(sandbox, what) == wanted, 20, sandbox.status)

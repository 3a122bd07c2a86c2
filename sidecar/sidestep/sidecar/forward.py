"""Brings a dead trainer's outbox to the daemon on another machine that it was for.

As its client would have: with its number for each record, so that what that daemon knows already
is not written twice. Everything that was not acknowledged yet is kept until it is.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import zmq
from zmq.utils import z85

from sidestep.proto import (
    Batch,
    ClientSession,
    Gap,
    Message,
    Part,
    Ping,
    RemoteProtocolError,
    SidestepError,
    Tags,
    decode,
    encode,
)
from sidestep.proto.limits import MAX_FRAME_BYTES
from sidestep.proto.records import HEADER
from sidestep.proto.session import (
    ClientAction,
    ClientState,
    Reconnect,
    Refused,
    Rejected,
    Send,
)

from .adopt import Adoption

_TAKE_BYTES: Final = 1 << 20
_POLL_MS: Final = 50
_QUEUED_FRAMES: Final = 1000
_LAST_WORD_S: Final = 2.0


class ForwardError(SidestepError):
    """The outbox could not be delivered; it stays where it is."""


@dataclass(frozen=True, slots=True)
class RemoteKeys:
    """What the connection needs: the daemon's public key, and the client's own, 32 bytes each."""

    daemon: bytes
    secret: bytes


@dataclass(frozen=True, slots=True)
class _Unit:
    """Messages that stand for the records `first` to `last`, of so many bytes."""

    first: int
    last: int
    nbytes: int
    messages: tuple[Message, ...]


def forward(
    adoption: Adoption, endpoint: str, keys: RemoteKeys | None, timeout_s: float | None
) -> None:
    """Deliver everything, and remove the outbox.

    Args:
        adoption: the dead client's outbox, locked.
        endpoint: the daemon's TCP address.
        keys: None for plain TCP.
        timeout_s: how long to try; None for as long as it takes.

    Raises:
        ForwardError: the daemon did not take it all in time, or will not; says which.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        _Forwarding(context, adoption, endpoint, keys).run(timeout_s)
    except RemoteProtocolError as error:
        raise ForwardError(f"the outbox {adoption.path} is damaged: {error}") from None
    finally:
        context.destroy(linger=0)
    adoption.remove()


class _Forwarding:
    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        adoption: Adoption,
        endpoint: str,
        keys: RemoteKeys | None,
    ) -> None:
        # One more connection of the same client, after all of its own and of earlier attempts.
        hello = replace(adoption.hello, connection=time.time_ns() >> 20)
        self._session = ClientSession(hello, random.random)
        self._context = context
        self._adoption = adoption
        self._endpoint = endpoint
        self._keys = keys
        self._tags: list[Tags] = []
        self._window: deque[_Unit] = deque()  # sent or to be sent, not acknowledged
        self._units = self._read()
        self._read_all = False
        self._reconnect_at = 0.0
        self._rejected = ""

    def run(self, timeout_s: float | None) -> None:
        """Until all of it is durable there."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._reconnect_at = 0.0
            socket = self._connect()
            try:
                self._do(socket, self._session.connected(time.monotonic()))
                while not self._reconnect_at:
                    if self._rejected:
                        raise ForwardError(f"{self._endpoint} refuses it: {self._rejected}")
                    if self._work(socket):
                        self._say_last(socket)
                        return
                    if deadline is not None and time.monotonic() > deadline:
                        raise ForwardError(
                            f"{self._endpoint} did not take all of {self._adoption.path} within "
                            f"{timeout_s:g} s: is the daemon there, and does it list this key?"
                        )
            finally:
                socket.close(linger=0)
            time.sleep(max(0.0, self._reconnect_at - time.monotonic()))

    def _work(self, socket: zmq.Socket[bytes]) -> bool:
        """A round; whether everything has been delivered."""
        self._do(socket, self._session.tick(time.monotonic()))
        while self._session.state is ClientState.READY and self._send_next(socket):
            pass
        if socket.poll(_POLL_MS):
            was = self._session.state
            try:
                message = decode(socket.recv(zmq.DONTWAIT))
            except RemoteProtocolError:
                return False
            self._do(socket, self._session.receive(message, time.monotonic()))
            if was is ClientState.GREETING and self._session.state is ClientState.READY:
                self._next_unit()  # what defines the tags stands before the first
                for tags in self._tags:
                    self._send(socket, tags)
        while self._window and self._window[0].last <= self._session.acked_seq:
            self._window.popleft()
        ready = self._session.state is ClientState.READY
        return ready and self._read_all and not self._window

    def _say_last(self, socket: zmq.Socket[bytes]) -> None:
        """The client's last books, and its farewell if it had finished."""
        session = self._session
        session.books = self._adoption.books(session.acked_seq, session.acked_dropped)
        self._send(socket, Ping(session.books))
        if self._adoption.finished:
            self._do(socket, session.finish(session.acked_seq, time.monotonic()))
        until = time.monotonic() + _LAST_WORD_S
        while time.monotonic() < until and session.state is not ClientState.CLOSED:
            if not socket.poll(_POLL_MS):
                continue
            self._do(socket, session.receive(decode(socket.recv()), time.monotonic()))
            if not self._adoption.finished:
                return  # an answer: the books have arrived

    def _send_next(self, socket: zmq.Socket[bytes]) -> bool:
        wanted = self._session.next_seq
        unit = next((u for u in self._window if u.last >= wanted), None) or self._next_unit()
        if unit is None or not self._session.may_send(unit.nbytes):
            return False
        for message in unit.messages:
            if not self._send(socket, message):
                return False
        if unit.last >= wanted:
            now = time.monotonic()
            self._session.sent(min(unit.first, wanted), unit.last, unit.nbytes, now)
        return True

    def _next_unit(self) -> _Unit | None:
        unit = next(self._units, None)
        if unit is None:
            self._read_all = True
        else:
            self._window.append(unit)
        return unit

    def _read(self) -> Iterator[_Unit]:
        """What the outbox holds; the parts of a large record are one unit."""
        parts: list[Part] = []
        while not self._adoption.exhausted:
            for message in self._adoption.take(_TAKE_BYTES):
                match message:
                    case Tags():
                        self._tags.append(message)
                    case Part():
                        parts.append(message)
                        if message.offset + len(message.data) == message.total:
                            yield _Unit(message.seq, message.seq, message.total, tuple(parts))
                            parts = []
                    case Batch(first, last, data):
                        yield _Unit(first, last, len(data), (message,))
                    case Gap(first, last):
                        yield _Unit(first, last, 0, (message,))
                    case _:
                        pass  # an outbox holds nothing else

    def _do(self, socket: zmq.Socket[bytes], actions: Sequence[ClientAction]) -> None:
        for action in actions:
            match action:
                case Send(message):
                    self._send(socket, message)
                case Reconnect(delay_s):
                    self._reconnect_at = time.monotonic() + delay_s
                case Rejected(_, reason):
                    self._rejected = reason
                case Refused(first, last, reason):
                    self._leave_out(first, last, reason)
                case _:
                    pass  # acknowledgements are looked at in the session

    def _leave_out(self, first: int, last: int, reason: str) -> None:
        """These records can never be taken there: a gap stands for them from now on."""
        kept: list[_Unit] = []
        for unit in self._window:
            if unit.last < first or unit.first > last:
                kept.append(unit)
                continue
            gap = Gap(max(unit.first, first), min(unit.last, last), reason)
            kept.append(_Unit(gap.first_seq, gap.last_seq, 0, (gap,)))
            message = unit.messages[0]
            if unit.last > last and isinstance(message, Batch):
                rest = _after(message, last)
                kept.append(_Unit(rest.first_seq, rest.last_seq, len(rest.data), (rest,)))
        self._window = deque(kept)

    @staticmethod
    def _send(socket: zmq.Socket[bytes], message: Message) -> bool:
        try:
            socket.send(encode(message), zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def _connect(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, _QUEUED_FRAMES)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        socket.setsockopt(zmq.IPV6, int("[" in self._endpoint))
        if self._keys is not None:
            secret = z85.encode(self._keys.secret)
            socket.setsockopt(zmq.CURVE_SERVERKEY, z85.encode(self._keys.daemon))
            socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, zmq.curve_public(secret))
        socket.connect(self._endpoint)
        return socket


def _after(batch: Batch, seq: int) -> Batch:
    """The records of `batch` after `seq`."""
    at = 0
    for _ in range(batch.first_seq, seq + 1):
        at += int(HEADER.unpack_from(batch.data, at)[0])
    return Batch(seq + 1, batch.last_seq, batch.data[at:])

"""The connections of a run's clients to the next daemon: opened, heard, thrown away."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import zmq

from sidestep.proto import Message, RemoteProtocolError, decode
from sidestep.proto.session import ClientState

from .delivery import Delivery
from .links import RemoteKeys, Watch, dial, put

_MAX_SOCKETS: Final = 8192
_TICK_S: Final = 0.1
_HURRY_S: Final = 0.01
_HEARD_AT_ONCE: Final = 100
"""Messages of one client, before the others have their turn."""

_PATIENCE_S: Final = 3.0
"""Until a daemon that has not welcomed a client, or has been silent, is said not to answer."""

_AGAIN_S: Final = 10.0
"""A client that was rejected asks again after this: it may have been one too many."""

FINAL: Final = frozenset({"loop", "version"})
"""Rejections that only a person can mend."""


@dataclass(slots=True)
class _Link:
    delivery: Delivery
    socket: zmq.Socket[bytes] | None = None
    watch: Watch | None = None
    troubled_since: float = field(default_factory=time.monotonic)
    again_at: float = 0.0


class Crossing:
    """All connections of one run.

    Args:
        endpoint: the next daemon's address.
        keys: for TCP; None without keys.
    """

    def __init__(self, endpoint: str, keys: RemoteKeys | None) -> None:
        self._endpoint = endpoint
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
        self._links: dict[int, _Link] = {}  # by the identity of what they carry
        self._poller = zmq.Poller()
        self._of_sockets: dict[zmq.Socket[bytes], _Link] = {}
        self._next_tick = self._last_tick = 0.0

    def wake_by(self, fd: int) -> None:
        """Let `turn` return when `fd` is readable."""
        self._poller.register(fd, zmq.POLLIN)

    def sender(self) -> tuple[Callable[[Message], bool], Callable[[Delivery], None]]:
        """What a delivery that is yet to be made sends with, and what makes it known here."""
        link: list[_Link] = []

        def send(message: Message) -> bool:
            socket = link[0].socket if link else None
            return socket is not None and put(socket, message)

        def add(delivery: Delivery) -> None:
            link.append(_Link(delivery))
            self._links[id(delivery)] = link[0]

        return send, add

    def keep(self, deliveries: Iterable[Delivery]) -> None:
        """Throw away the connections of all others."""
        kept = {id(delivery) for delivery in deliveries}
        for number in [number for number in self._links if number not in kept]:
            self._hang_up(self._links.pop(number))

    def hurry(self) -> None:
        """There is something to send."""
        self._next_tick = min(self._next_tick, self._last_tick + _HURRY_S)

    def turn(self, timeout_s: float) -> bool:
        """Hear what has come, send what may be sent; whether anything has come.

        Raises:
            zmq.ZMQError: there are no sockets left.
        """
        now = time.monotonic()
        wait_s = max(0.0, min(timeout_s, self._next_tick - now))
        heard: list[_Link] = []
        for socket, _ in self._poller.poll(int(wait_s * 1000 + 0.5)):
            if isinstance(socket, zmq.Socket):
                heard.append(self._of_sockets[socket])
        now = time.monotonic()
        for link in heard:
            self._hear(link, now)
        if now >= self._next_tick:
            self._last_tick, self._next_tick = now, now + _TICK_S
            for link in self._links.values():
                self._look_after(link, now)
                link.delivery.work(now)
        else:
            for link in heard:
                link.delivery.work(now)
        return bool(heard)

    def trouble(self) -> str | None:
        """Why not all clients are served, as a sentence; None when they are."""
        now = time.monotonic()
        for link in self._links.values():
            if link.delivery.rejected is not None:
                return f"{self._endpoint} refuses it: {link.delivery.rejected.reason}"
        watches = [link.watch for link in self._links.values() if link.watch is not None]
        if watches and watches[0].refusal:
            return f"the daemon at {self._endpoint} {watches[0].refusal}"
        if any(now - link.troubled_since > _PATIENCE_S for link in self._links.values()):
            return f"the daemon at {self._endpoint} does not answer: is it there?"
        return None

    def is_final(self) -> bool:
        """Whether nothing but a person can mend that."""
        rejected = [link.delivery.rejected for link in self._links.values()]
        return any(one is not None and one.code in FINAL for one in rejected)

    def close(self) -> None:
        """Throw everything away."""
        for link in self._links.values():
            self._hang_up(link)
        self._links.clear()
        self._context.destroy(linger=0)

    # --- one connection ------------------------------------------------------------------------

    def _hear(self, link: _Link, now: float) -> None:
        socket = link.socket
        for _ in range(_HEARD_AT_ONCE):
            if socket is None:
                return
            try:
                message = decode(socket.recv(zmq.DONTWAIT))
            except zmq.Again:
                return
            except RemoteProtocolError:
                continue
            link.delivery.receive(message, now)

    def _look_after(self, link: _Link, now: float) -> None:
        delivery = link.delivery
        if link.watch is not None:
            link.watch.look()
        if delivery.state in (ClientState.READY, ClientState.CLOSING, ClientState.CLOSED):
            link.troubled_since = now
        if delivery.rejected is not None:
            self._hang_up(link)
            link.again_at = link.again_at or now + _AGAIN_S
            if now >= link.again_at:
                link.again_at = 0.0
                delivery.begin_again(time.time_ns() >> 20, now)
            return
        if delivery.reconnect_at is not None and link.socket is not None:
            self._hang_up(link)
        if link.socket is None and (delivery.reconnect_at or 0.0) <= now:
            self._connect(link)
            delivery.connected(now)

    def _connect(self, link: _Link) -> None:
        socket = dial(self._context, self._endpoint, self._keys)
        try:
            if self._keys is not None and not any(other.watch for other in self._links.values()):
                link.watch = Watch(self._context, socket)  # one speaks for all
            socket.connect(self._endpoint)
        except BaseException:
            socket.close(linger=0)
            raise
        link.socket = socket
        self._of_sockets[socket] = link
        self._poller.register(socket, zmq.POLLIN)

    def _hang_up(self, link: _Link) -> None:
        if link.socket is not None:
            self._poller.unregister(link.socket)
            del self._of_sockets[link.socket]
            link.socket.close(linger=0)
            link.socket = None
        if link.watch is not None:
            link.watch.close()
            link.watch = None


def jitter() -> float:
    """A number in [0, 1), for backoff."""
    return random.random()  # noqa: S311 - no secret

"""The daemon's TCP address: a socket of its own, with CURVE wherever it leaves the loopback.

Ingest's thread owns it. A connection that is there stays, whatever the list of keys says later. So
somebody who is struck off is shut out by closing the socket: all others come back by themselves.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import zmq
from zmq.utils import z85

from sidestep.proto import SidestepError
from sidestep.proto.addresses import is_loopback
from sidestep.proto.keys import CLIENTS, ZAP_DOMAIN
from sidestep.proto.limits import MAX_FRAME_BYTES

from .gate import FAILURES, Gate
from .keys import AllowList, DaemonKeys

_PREFIX: Final = b"tcp:"
_HANDSHAKE_MS: Final = 5000
_BACKLOG: Final = 128
_QUEUED_FRAMES: Final = 200
"""A client sends within its credit; this bounds one that does not."""

_KEEPALIVE_S: Final = 30
"""After so long without a word TCP looks whether the other machine is still there ..."""
_PROBE_S: Final = 10
_PROBES: Final = 3


class EndpointError(SidestepError):
    """The daemon cannot listen at its TCP address; the message says why."""


class TcpDoor:
    """Listens at a TCP address. All of it belongs to one thread.

    Args:
        context: the daemon's.
        endpoint: ``tcp://ADDRESS:PORT``.
        keys: the daemon's keys; None for plain TCP, on the loopback alone.
        log: says something to the daemon's log.

    Attributes:
        junk: messages that were no single frame.

    Raises:
        EndpointError: it cannot listen there.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        keys: DaemonKeys | None,
        log: Callable[[str], None],
    ) -> None:
        if keys is None and not is_loopback(endpoint):
            raise EndpointError(f"{endpoint} is no loopback address: it needs keys")
        self.junk = 0
        self._context = context
        self._endpoint = endpoint
        self._keys = keys
        self._log = log
        self._binds = 0
        self._gate: Gate | None = None
        self._socket: zmq.Socket[bytes] | None = None
        try:
            if keys is not None:
                listed = AllowList(os.path.join(keys.folder, CLIENTS), log)
                self._gate = Gate(context, listed.names, log)
                self._gate.start()
            self._socket = self._listen()
        except zmq.ZMQError as error:
            self.close()
            raise EndpointError(
                f"cannot listen at {endpoint}: {error.strerror}. It must be an address of this "
                "machine whose port is free; a daemon listens where `sidecar: endpoint:` or "
                "SIDESTEP_ENDPOINT says"
            ) from None
        log(f"listening at {endpoint}, " + (f"keys in {keys.folder}" if keys else "without keys"))

    @property
    def socket(self) -> zmq.Socket[bytes] | None:
        """What to poll for reading; None for a moment while it is being opened again."""
        return self._socket

    @property
    def refused(self) -> int:
        """Connections that were refused at the handshake."""
        return self._gate.refused if self._gate is not None else 0

    def receive(self, max_frames: int, max_bytes: int) -> list[tuple[bytes, bytes]]:
        """What has come: whose it is, and its one frame. Opens the door again when it must."""
        if self._gate is not None and self._gate.revoked.is_set():
            self._begin_anew(self._gate)
        found: list[tuple[bytes, bytes]] = []
        nbytes = 0
        while self._socket is not None and len(found) < max_frames and nbytes < max_bytes:
            try:
                parts = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            if len(parts) != 2:
                self.junk += 1
                continue
            found.append((_PREFIX + parts[0], parts[1]))
            nbytes += len(parts[1])
        return found

    def send(self, identity: bytes, frame: bytes) -> bool:
        """Send to one of those that `receive` named; False if that is nobody's of this door.

        Raises:
            zmq.ZMQError: it has gone, or does not read.
        """
        if not identity.startswith(_PREFIX):
            return False
        if self._socket is not None:
            peer = identity.removeprefix(_PREFIX)
            self._socket.send_multipart([peer, frame], zmq.DONTWAIT)
        return True

    def close(self) -> None:
        """Listen no more."""
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None
        if self._gate is not None:
            self._gate.stop()
            if self._gate.is_alive():
                self._gate.join()

    def _begin_anew(self, gate: Gate) -> None:
        """Cut all connections; try again in the next round while the port is not free yet."""
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None
        try:
            self._socket = self._listen()
        except zmq.ZMQError:
            return
        gate.revoked.clear()

    def _listen(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
            socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
            socket.setsockopt(zmq.BACKLOG, _BACKLOG)
            socket.setsockopt(zmq.RCVHWM, _QUEUED_FRAMES)
            socket.setsockopt(zmq.SNDHWM, _QUEUED_FRAMES)
            socket.setsockopt(zmq.IPV6, int("[" in self._endpoint))
            socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
            socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, _KEEPALIVE_S)
            socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, _PROBE_S)
            socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, _PROBES)
            if self._keys is not None and self._gate is not None:
                socket.setsockopt(zmq.CURVE_SERVER, 1)
                socket.setsockopt(zmq.CURVE_SECRETKEY, z85.encode(self._keys.secret))
                socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
                socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without the gate, nobody
                self._binds += 1
                self._gate.watch(self._monitor(socket))
            socket.bind(self._endpoint)
        except BaseException:
            socket.close(linger=0)
            raise
        return socket

    def _monitor(self, socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
        """Tells of handshakes that fail. With nobody at this end it would stop ZeroMQ's thread."""
        self._binds += 1
        address = f"inproc://tcp-door-{self._binds}"
        socket.monitor(address, FAILURES)
        monitor = self._context.socket(zmq.PAIR)
        monitor.setsockopt(zmq.LINGER, 0)
        monitor.connect(address)
        return monitor

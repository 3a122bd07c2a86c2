"""Connections to another daemon: with keys or without, and why nobody answers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from sidestep.proto import Message, encode, keys as files
from sidestep.proto.addresses import is_loopback, is_tcp
from sidestep.proto.keys import KeysError
from sidestep.proto.limits import MAX_FRAME_BYTES

from ..peers.keys import read_key

_QUEUED_FRAMES: Final = 1000
_KEEPALIVE_S: Final = 30
_PROBE_S: Final = 10
_PROBES: Final = 3
_FAILURES: Final = {
    zmq.Event.HANDSHAKE_FAILED_AUTH: "does not list this node's key in its folder clients/",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "has no keys, or is no daemon",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "is not the one whose public key is here, or no daemon",
}


@dataclass(frozen=True, slots=True)
class RemoteKeys:
    """What a connection needs: the daemon's public key, and the client's own, 32 bytes each."""

    daemon: bytes
    secret: bytes = field(repr=False)


def read_keys(folder: str) -> RemoteKeys:
    """The keys of a client in `folder`, as `sidestep keygen` makes it.

    Raises:
        KeysError: one is missing, malformed, or open to others; says what to do.
    """
    return RemoteKeys(
        read_key(os.path.join(folder, files.DAEMON_PUBLIC), files.PUBLIC),
        read_key(os.path.join(folder, files.CLIENT_KEY), files.SECRET),
    )


def keys_for(endpoint: str, folder: str | None) -> RemoteKeys | None:
    """The keys that a connection to `endpoint` needs; None where it needs none.

    Raises:
        KeysError: they are needed, and are not there or not as they must be.
    """
    if not is_tcp(endpoint):
        return None
    if folder is None:
        if is_loopback(endpoint):
            return None
        raise KeysError(
            f"{endpoint} leaves this machine, and TCP does that with keys alone: make some with "
            "`sidestep keygen DIR --client NAME` where that daemon is, and name the folder in "
            "forward_keys or keys"
        )
    return read_keys(folder)


def dial(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, keys: RemoteKeys | None
) -> zmq.Socket[bytes]:
    """A socket for one client; whoever has it connects it."""
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, _QUEUED_FRAMES)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    if is_tcp(endpoint):
        socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, _KEEPALIVE_S)
        socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, _PROBE_S)
        socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, _PROBES)
        if keys is not None:
            secret = z85.encode(keys.secret)
            socket.setsockopt(zmq.CURVE_SERVERKEY, z85.encode(keys.daemon))
            socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, zmq.curve_public(secret))
    return socket


def put(socket: zmq.Socket[bytes], message: Message) -> bool:
    """Send a message, if there is room for it."""
    try:
        socket.send(encode(message), zmq.DONTWAIT)
    except zmq.Again:
        return False
    return True


class Watch:
    """Takes note of how a connection's handshakes go; must be looked at now and then.

    Args:
        context: the socket's own.
        socket: a connection, not connected yet.

    Attributes:
        refusal: why the daemon does not let us in; "" while it may.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes]) -> None:
        self.refusal = ""
        address = f"inproc://handshakes-{id(self)}"
        socket.monitor(address, int(zmq.Event.HANDSHAKE_SUCCEEDED) | int(sum(_FAILURES)))
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.connect(address)

    def look(self) -> None:
        """See what has happened since."""
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            self.refusal = _FAILURES.get(zmq.Event(event), "")

    def close(self) -> None:
        """Stop watching."""
        self._monitor.close(linger=0)

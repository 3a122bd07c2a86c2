"""The client's socket: connects to the daemon, over TCP with keys, and knows why nobody answers."""

from __future__ import annotations

from typing import Final

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from sidestep.proto.addresses import is_tcp
from sidestep.proto.limits import MAX_FRAME_BYTES

from .keys import ClientKeys

_QUEUED_FRAMES: Final = 1000
"""By count; the session's credit bounds the bytes."""

_KEEPALIVE_S: Final = 30
"""After so long without a word TCP looks whether the other machine is still there ..."""
_PROBE_S: Final = 10
_PROBES: Final = 3

_HANDSHAKES: Final = (
    zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)
_CERTAIN: Final = (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_AUTH)


class Link:
    """One connection. Belongs to the thread that made it.

    Args:
        context: the sender's own.
        endpoint: the daemon's ZeroMQ address.
        keys: for TCP; None without keys.

    Attributes:
        socket: to send and to receive with.
        refusal: why the daemon does not let this client in, as a sentence; "" while it may.
        certain: whether no second try mends that.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, keys: ClientKeys | None
    ) -> None:
        self.refusal = ""
        self.certain = False
        self._endpoint = endpoint
        self._keys = keys
        self._monitor: zmq.Socket[bytes] | None = None
        self.socket = context.socket(zmq.DEALER)
        try:
            self._set_up(context)
        except BaseException:
            self.close()
            raise

    def look(self) -> None:
        """Take note of how the handshakes went. Must be called now and then.

        A monitor that nobody reads would stop ZeroMQ's own thread when it is full.
        """
        while self._monitor is not None and self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            self.refusal = self._reason(event)
            self.certain = event in _CERTAIN

    def close(self) -> None:
        """Throw it away."""
        self.socket.close(linger=0)
        if self._monitor is not None:
            self._monitor.close(linger=0)
            self._monitor = None

    def _set_up(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        socket = self.socket
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, _QUEUED_FRAMES)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        if is_tcp(self._endpoint):
            socket.setsockopt(zmq.IPV6, int("[" in self._endpoint))
            socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
            socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, _KEEPALIVE_S)
            socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, _PROBE_S)
            socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, _PROBES)
            if self._keys is not None:
                secret = z85.encode(self._keys.secret)
                socket.setsockopt(zmq.CURVE_SERVERKEY, z85.encode(self._keys.daemon))
                socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
                socket.setsockopt(zmq.CURVE_PUBLICKEY, zmq.curve_public(secret))
            address = f"inproc://handshakes-{id(self)}"
            socket.monitor(address, int(_HANDSHAKES))
            self._monitor = context.socket(zmq.PAIR)
            self._monitor.setsockopt(zmq.LINGER, 0)
            self._monitor.connect(address)
        socket.connect(self._endpoint)

    def _reason(self, event: int) -> str:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            return ""
        where = f"the daemon at {self._endpoint}"
        if self._keys is None:
            return f"{where} wants keys: set SIDESTEP_KEYS or `logging: keys:`"
        folder = self._keys.folder
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            return (
                f"{where} does not list the key in {folder}: its folder clients/ needs that "
                "key's public half"
            )
        if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            return f"{where} has no keys, or is no daemon: give it `sidecar: keys:`"
        return f"{where} is not the one whose public key is in {folder}, or no daemon"

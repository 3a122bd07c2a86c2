"""Decides who may connect over TCP: ZeroMQ asks (ZAP, RFC 27), the list of clients' keys answers.

A thread that neither reads a client's messages nor touches a disk but for the list. Without it,
CURVE takes any client key; the socket is told to take nobody when this thread is not there.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from sidestep.proto.keys import KEY_BYTES, ZAP_DOMAIN

_ADDRESS: Final = "inproc://zeromq.zap.01"
_POLL_MS: Final = 250
_SAY_EVERY_S: Final = 10.0
_PAUSE_S: Final = 0.05
FAILURES: Final = (
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)


class Gate(threading.Thread):
    """Answers until it is stopped; refuses what it cannot judge.

    Args:
        context: the daemon's, which the listening socket is in.
        clients: the names of those who may connect, by their keys, as they are now.
        log: says something to the daemon's log.

    Attributes:
        refused: connections that came to nothing: with a wrong key, an unlisted one, or none.
        revoked: set when somebody who was let in is not listed any more; cleared by who acts on it.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        clients: Callable[[], Mapping[bytes, str]],
        log: Callable[[str], None],
    ) -> None:
        super().__init__(name="gate", daemon=True)
        self.refused = 0
        self.revoked = threading.Event()
        self._context = context
        self._clients = clients
        self._log = log
        self._admitted: dict[bytes, str] = {}
        self._watched: queue.SimpleQueue[zmq.Socket[bytes]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._say_at = 0.0
        self._unsaid = 0
        self._cause = ""
        self._monitor: zmq.Socket[bytes] | None = None
        # Bound here: from now on nobody is let in without being asked about.
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(_ADDRESS)

    def watch(self, monitor: zmq.Socket[bytes]) -> None:
        """Count the failures that a socket's monitor tells, which is this thread's from now on."""
        self._watched.put(monitor)

    def stop(self) -> None:
        """End the thread, within a quarter of a second."""
        self._stopping.set()

    def run(self) -> None:
        """Answer until stopped."""
        while not self._stopping.is_set():
            try:
                self._round()
            except Exception as error:  # noqa: BLE001 - a monitor that nobody reads stops ZeroMQ
                self._cause = f"{type(error).__name__}: {error}"
                self._unsaid += 1
                self._stopping.wait(_PAUSE_S)
        self._socket.unbind(_ADDRESS)  # at once, for the next gate; closing takes its time
        self._socket.close(linger=0)
        if self._monitor is not None:
            self._monitor.close(linger=0)

    def _round(self) -> None:
        while not self._watched.empty():
            if self._monitor is not None:
                self._monitor.close(linger=0)
            self._monitor = self._watched.get()
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        if self._monitor is not None:
            poller.register(self._monitor, zmq.POLLIN)
        for ready, _ in poller.poll(_POLL_MS):
            if ready is self._socket:
                self._answer()
            elif self._monitor is not None:
                self._count(self._monitor)
        self._look_for_revoked()
        self._say()

    def _answer(self) -> None:
        """One question: version, id, domain, address, identity, mechanism, and the client's key."""
        asked = self._socket.recv_multipart()
        version, number = (*asked, b"", b"")[:2]
        domain, address, _, mechanism, key = (*asked[2:7], *[b""] * 5)[:5]
        name = None
        if (version, domain, mechanism, len(asked)) == (b"1.0", ZAP_DOMAIN, b"CURVE", 7):
            name = self._clients().get(key) if len(key) == KEY_BYTES else None
        if name is None:
            who = address.decode("ascii", "replace")
            self._cause = f"the key of the client at {who} is not listed: {key.hex()}"
            self._socket.send_multipart([b"1.0", number, b"400", b"not listed", b"", b""])
            return
        self._admitted[key] = name
        self._socket.send_multipart([b"1.0", number, b"200", b"", name.encode(), b""])

    def _count(self, monitor: zmq.Socket[bytes]) -> None:
        event = recv_monitor_message(monitor)["event"]
        if event & FAILURES:
            self.refused += 1
            self._unsaid += 1
            if event != zmq.EVENT_HANDSHAKE_FAILED_AUTH and not self._cause:
                self._cause = "a client without keys, or with another daemon's public key"

    def _look_for_revoked(self) -> None:
        gone = self._admitted.keys() - self._clients().keys()
        if gone:
            names = ", ".join(sorted(self._admitted[key] for key in gone))
            self._log(f"not listed any more: {names}. All connections over TCP begin anew")
            self._admitted.clear()
            self.revoked.set()

    def _say(self) -> None:
        """What was refused, seldom: whoever is refused comes again twice a second."""
        now = time.monotonic()
        if self._unsaid and now >= self._say_at:
            self._log(f"refused {self._unsaid} connections over TCP; the last: {self._cause}")
            self._say_at = now + _SAY_EVERY_S
            self._unsaid, self._cause = 0, ""

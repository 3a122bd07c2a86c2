"""Where peers come in: the door for this machine, and the one for TCP if there is an address.

libzmq, behind the TCP door, gathers a message of many frames before anybody sees one of them, so a
peer that never ends its message fills the memory. Nobody can say which peer it is; so, when the
process has grown too much, that door is closed, with all that it holds, and opened again. Clients
come back by themselves and lose nothing.
"""

from __future__ import annotations

import ctypes
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import zmq

from sidestep.proto import Reject, RemoteProtocolError, encode
from sidestep.proto.limits import MAX_FRAME_BYTES

from .door import Door, Manners
from .refusals import Refusals
from .tcp_door import EndpointError, TcpDoor

_IPC: Final = "ipc://"
_GROWTH_BYTES: Final = 1 << 30
_WATCH_S: Final = 0.05
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Gates:
    """All endpoints of the daemon; lives in ingest's thread.

    Args:
        endpoints: addresses of Unix sockets, ``ipc://PATH``; the first one is the daemon's own,
            where whatever is there is replaced.
        open_tcp: listens at the TCP address; None if there is none.
        max_connections: from this machine, at once.
        refusals: where what is refused is counted.
        growth_bytes: how much the process may grow while peers come over TCP.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        open_tcp: Callable[[], TcpDoor] | None,
        max_connections: int,
        refusals: Refusals,
        growth_bytes: int = _GROWTH_BYTES,
    ) -> None:
        self._open_tcp = open_tcp
        self._refusals = refusals
        self._growth_bytes = growth_bytes
        self._refused_before = 0  # by TCP doors that are closed
        paths = [endpoint.removeprefix(_IPC) for endpoint in endpoints]
        for path in paths[1:]:
            _spare_files(path)
        manners = Manners("ROUTER", ("DEALER",), max_connections, MAX_FRAME_BYTES)
        self._door = Door(paths, manners, self._refused, _farewell)
        self._tcp: TcpDoor | None = None
        try:
            self._tcp = open_tcp() if open_tcp is not None else None
        except BaseException:
            self._door.close()
            raise
        self._next_watch = 0.0
        self._small_bytes = _resident_bytes()

    @property
    def refused(self) -> int:
        """Connections and messages that the TCP door refused."""
        now = 0 if self._tcp is None else self._tcp.refused + self._tcp.junk
        return self._refused_before + now

    @property
    def turned_away(self) -> int:
        """Connections from this machine that were ended for want of room."""
        return self._door.turned_away

    def __len__(self) -> int:
        """Connections from this machine."""
        return len(self._door)

    def receive(self, wait_ms: int, max_frames: int, max_bytes: int) -> list[tuple[bytes, bytes]]:
        """What has come, as (who, frame); waits for it."""
        if not self._door.busy:
            self._wait(wait_ms)
        found = [(who, message[0]) for who, message in self._door.receive(max_frames, max_bytes)]
        if self._open_tcp is not None:
            if self._tcp is None:
                self._reopen()
            else:
                found += self._tcp.receive(max_frames, max_bytes)
            self._watch()
        return found

    def send(self, identity: bytes, frame: bytes) -> None:
        """Send to whoever `identity` is, if it is there and reads: it will ask again."""
        with suppress(zmq.ZMQError):
            if self._tcp is None or not self._tcp.send(identity, frame):
                self._door.send(identity, [frame])

    def admit(self, identity: bytes) -> None:
        """This peer has said who it is."""
        self._door.admit(identity)

    def close(self) -> None:
        """Let nobody in any more."""
        self._door.close()
        if self._tcp is not None:
            self._tcp.close()

    # --- inside ------------------------------------------------------------------------------

    def _wait(self, wait_ms: int) -> None:
        poller = zmq.Poller()
        poller.register(self._door.fileno(), zmq.POLLIN)
        if self._tcp is not None and self._tcp.socket is not None:
            poller.register(self._tcp.socket, zmq.POLLIN)
        poller.poll(wait_ms)

    def _refused(self, error: RemoteProtocolError, data: bytes) -> None:
        self._refusals.note("frame", error.code, str(error), data)

    def _watch(self) -> None:
        now = time.monotonic()
        if now < self._next_watch:
            return
        self._next_watch = now + _WATCH_S
        resident = _resident_bytes()
        self._small_bytes = min(self._small_bytes, resident)
        if resident - self._small_bytes <= self._growth_bytes or self._tcp is None:
            return
        why = f"the daemon has grown to {resident >> 20} MiB: all TCP connections are closed"
        self._refusals.note("frame", "too_much", why)
        self._refused_before = self.refused
        self._tcp.close()
        self._tcp = None
        self._reopen()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc keeps it otherwise
        # What does not go back to the system is used again before the process grows.
        self._small_bytes = max(self._small_bytes, _resident_bytes() - self._growth_bytes // 2)

    def _reopen(self) -> None:
        """Open the TCP door; its port may not be free yet, then it is tried in the next round."""
        if self._open_tcp is not None:
            with suppress(EndpointError):
                self._tcp = self._open_tcp()


def _spare_files(path: str) -> None:
    """Where a person chose the place, somebody's file may be there.

    Raises:
        FileExistsError: it is.
    """
    with suppress(FileNotFoundError):
        if stat.S_ISREG(os.lstat(path).st_mode):
            raise FileExistsError(
                f"endpoint ipc://{path}: a file is there, and no socket that an earlier daemon "
                "left; move it away, or choose another path"
            )


def _farewell(error: RemoteProtocolError) -> bytes:
    return encode(Reject(error.code, str(error)))


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except OSError:
        return 0

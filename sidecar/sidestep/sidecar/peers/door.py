"""The door for peers on this machine: Unix sockets that speak ZMTP, with a bound on everything.

A peer is admitted up to a number of connections, below what the process has descriptors for; what
of it is in memory is at most one frame that is not whole, and what its last reads have brought. Who
breaks the protocol, sends a message of several frames, or is silent for too long is put out, alone.
Nothing is read ahead of what is taken out again: the rest waits in the kernel, and its sender with
it. One thread owns this object.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from sidestep.proto import RemoteProtocolError

from .zmtp import Connection, framed

_READ_BYTES: Final = 256 << 10
_WAITING_BYTES: Final = 1 << 20
_TURN_FRAMES: Final = 64
"""So many messages of one peer, then the next one has its turn."""

_HELD_BYTES: Final = 128 << 20
"""Frames that are not whole, of all peers together. With half of it those go on that have begun
one, for a while: a crowd that speaks all at once shall be heard one after the other."""

_CROWD_S: Final = 0.5

_ACCEPTS: Final = 64
_BACKLOG: Final = 4096
_LOOK_S: Final = 1.0
_FRESH_S: Final = 0.25
_PAUSE_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Manners:
    """What is expected of those who come in by a door, and what they get.

    Attributes:
        own: the type of ZeroMQ socket that this end is.
        peers: those that may connect.
        max_connections: at once.
        max_frame_bytes: the largest frame.
        max_parts: frames of a message.
        stranger_s: after so long without a whole message a stranger is put out ...
        silent_s: ... and somebody who was admitted.
        unsent_bytes: what waits for a peer that does not read; beyond it nothing is sent to it.
    """

    own: str
    peers: Sequence[str]
    max_connections: int
    max_frame_bytes: int
    max_parts: int = 1
    stranger_s: float = 10.0
    silent_s: float = 30.0
    unsent_bytes: int = 1 << 20


class _Peer:
    """One connection, and what waits in it."""

    __slots__ = (
        "connection",
        "heard",
        "held",
        "identity",
        "known",
        "messages",
        "socket",
        "spoke",
        "unsent",
        "waits",
    )

    def __init__(self, sock: socket.socket, identity: bytes, connection: Connection) -> None:
        self.socket = sock
        self.identity = identity
        self.connection = connection
        self.heard = time.monotonic()
        self.known = self.spoke = False
        self.held = 0  # bytes of what is no whole message yet
        self.messages: deque[list[bytes]] = deque()
        self.waits = 0  # bytes of those
        self.unsent = bytearray()


class Door:
    """All connections of peers on this machine.

    Args:
        paths: of the sockets; what is left there of an earlier daemon is replaced.
        manners: what is expected.
        refused: told of each peer that is put out for what it sent: why, and what it was.
        farewell: makes the message that says why; None to say nothing.

    Attributes:
        turned_away: connections that were ended for want of room.
    """

    def __init__(
        self,
        paths: Sequence[str],
        manners: Manners,
        refused: Callable[[RemoteProtocolError, bytes], None],
        farewell: Callable[[RemoteProtocolError], bytes] | None = None,
    ) -> None:
        self.turned_away = 0
        self._manners = manners
        self._refused = refused
        self._farewell = farewell
        self._selector = selectors.DefaultSelector()
        self._peers: dict[bytes, _Peer] = {}
        self._strangers: dict[bytes, _Peer] = {}  # who is no client yet, oldest first
        self._held = 0
        self._crowded_since: float | None = None
        self._waiting: deque[_Peer] = deque()
        self._count = 0
        self._next_look = 0.0
        self._closed_until = 0.0
        self._listeners: list[tuple[socket.socket, str, int]] = []
        try:
            for path in paths:
                self._listeners.append(_listen(path))
                self._selector.register(self._listeners[-1][0], selectors.EVENT_READ)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """How many connections there are."""
        return len(self._peers)

    def __contains__(self, identity: bytes) -> bool:
        """Whether this peer is still there."""
        return identity in self._peers

    def fileno(self) -> int:
        """For a poller: readable when there may be something to do."""
        return self._selector.fileno()

    @property
    def busy(self) -> bool:
        """Whether something waits that no poller will tell of."""
        return bool(self._waiting)

    @property
    def unsent(self) -> bool:
        """Whether somebody has not taken all that was sent to it."""
        return any(peer.unsent for peer in self._peers.values())

    def receive(self, max_messages: int, max_bytes: int) -> list[tuple[bytes, list[bytes]]]:
        """What has come, as (who, frames), each peer in turn; about `max_bytes` at most."""
        self._read(max_bytes)
        self._look()
        found: list[tuple[bytes, list[bytes]]] = []
        nbytes = 0
        while self._waiting and len(found) < max_messages and nbytes < max_bytes:
            peer = self._waiting.popleft()
            for _ in range(min(len(peer.messages), _TURN_FRAMES)):
                message = peer.messages.popleft()
                size = sum(map(len, message))
                peer.waits -= size
                nbytes += size
                found.append((peer.identity, message))
            if peer.messages:
                self._waiting.append(peer)
        return found

    def send(self, identity: bytes, message: Sequence[bytes]) -> bool:
        """Send frames as one message, if the peer is there and reads; whether it was taken."""
        peer = self._peers.get(identity)
        if peer is None or len(peer.unsent) > self._manners.unsent_bytes:
            return False
        peer.unsent += framed(message)
        return self._flush(peer)

    def admit(self, identity: bytes) -> None:
        """This peer is no stranger: it stays as long as it is heard."""
        peer = self._strangers.pop(identity, None)
        if peer is not None:
            peer.known = True

    def close(self) -> None:
        """Put everybody out, and close."""
        for peer in list(self._peers.values()):
            self._put_out(peer)
        for listener, path, inode in self._listeners:
            listener.close()
            with suppress(OSError):
                if os.stat(path, follow_symlinks=False).st_ino == inode:
                    os.unlink(path)
        self._listeners.clear()
        self._selector.close()

    # --- inside ------------------------------------------------------------------------------

    def _read(self, max_bytes: int) -> None:
        """Read from everybody in turn, while something comes and there is room for it."""
        nbytes = 0
        progress = True
        while progress and nbytes < max_bytes:
            progress = False
            for key, events in self._selector.select(0):
                if key.data is None:
                    progress |= self._accept(key.fileobj)
                    continue
                peer: _Peer = key.data
                if peer.identity not in self._peers:
                    continue  # put out while this pass went on
                if events & selectors.EVENT_WRITE and not self._flush(peer):
                    continue
                full = peer.waits >= _WAITING_BYTES or len(peer.messages) >= _TURN_FRAMES
                full = full or (not peer.held and self._is_crowded())
                if events & selectors.EVENT_READ and not full:
                    count = self._read_peer(peer)
                    nbytes += count
                    progress |= count > 0

    def _is_crowded(self) -> bool:
        """Whether those who have begun a frame come first; not for ever, if they do not end it."""
        if self._held <= _HELD_BYTES // 2:
            self._crowded_since = None
            return False
        now = time.monotonic()
        if self._crowded_since is None:
            self._crowded_since = now
        return now - self._crowded_since < _CROWD_S

    def _read_peer(self, peer: _Peer) -> int:
        try:
            data = peer.socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            data = b""
        if not data:
            # What it said in full counts, also when it has gone.
            self._put_out(peer)
            return 0
        connection = peer.connection
        try:
            messages = connection.receive(data)
        except RemoteProtocolError as error:
            self._expel(peer, error, data)
            return len(data)
        self._held += connection.held_bytes - peer.held
        peer.held = connection.held_bytes
        if self._held > _HELD_BYTES:
            self._expel(
                min((p for p in self._peers.values() if p.held), key=_heard),
                RemoteProtocolError("too_slow", "too much came that is no whole message"),
                b"",
            )
        if connection.answers:
            peer.unsent += connection.answers
            connection.answers = b""
            # Who asks without end for signs of life, and reads none, would fill the memory.
            if self._flush(peer) and len(peer.unsent) > self._manners.unsent_bytes:
                self._expel(peer, RemoteProtocolError("too_slow", "answers are not read"), b"")
                return len(data)
        if messages:
            peer.heard = time.monotonic()
            peer.spoke = True
            if not peer.messages:
                self._waiting.append(peer)
            peer.messages += messages
            peer.waits += sum(len(frame) for message in messages for frame in message)
        return len(data)

    def _accept(self, listener: object) -> bool:
        """Let in who stands at the door, and whoever is longest there without a name out."""
        assert isinstance(listener, socket.socket)
        for _ in range(_ACCEPTS):
            if len(self._peers) >= self._manners.max_connections and not self._make_room():
                self._pause()  # they wait outside
                return False
            try:
                sock, _address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError:
                # No descriptor is left: nobody is let in until there is.
                if not self._make_room():
                    self._pause()
                return False
            sock.setblocking(False)
            self._count += 1
            # As no ZeroMQ socket may call itself, and none is called.
            identity = b"\0\0here" + self._count.to_bytes(8, "big")
            rules = self._manners
            connection = Connection(rules.own, rules.peers, rules.max_frame_bytes, rules.max_parts)
            peer = self._peers[identity] = _Peer(sock, identity, connection)
            self._strangers[identity] = peer
            self._selector.register(sock, selectors.EVENT_READ, peer)
            peer.unsent += connection.answers
            connection.answers = b""
            self._flush(peer)
        return True

    def _make_room(self) -> bool:
        """Put out the stranger who was here longest, if any has had time to be answered."""
        now = time.monotonic()
        for peer in self._strangers.values():
            answered = peer.spoke and not peer.messages
            if answered or now - peer.heard >= _FRESH_S:
                self.turned_away += 1
                self._put_out(peer)
                return True
        return False

    def _pause(self) -> None:
        self._closed_until = time.monotonic() + _PAUSE_S
        for listener, _, _ in self._listeners:
            with suppress(KeyError):
                self._selector.unregister(listener)

    def _look(self) -> None:
        """Now and then: who is silent, who fills the memory, and whether the door may open."""
        now = time.monotonic()
        if self._closed_until and now >= self._closed_until:
            self._closed_until = 0.0
            for listener, _, _ in self._listeners:
                self._selector.register(listener, selectors.EVENT_READ)
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_S
        for peer in list(self._peers.values()):
            patience = self._manners.silent_s if peer.known else self._manners.stranger_s
            if now - peer.heard >= patience and not peer.messages:
                self._put_out(peer)

    def _flush(self, peer: _Peer) -> bool:
        """Send what the peer takes; False when it has gone."""
        try:
            sent = peer.socket.send(peer.unsent) if peer.unsent else 0
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._put_out(peer)
            return False
        del peer.unsent[:sent]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.unsent else 0)
        if self._selector.get_key(peer.socket).events != wanted:
            self._selector.modify(peer.socket, wanted, peer)
        return True

    def _expel(self, peer: _Peer, error: RemoteProtocolError, data: bytes) -> None:
        """Put a peer out for what it sent, and tell it why if it understands that."""
        self._refused(error, data)
        unsent = peer.unsent + peer.connection.answers
        if peer.connection.ready and self._farewell is not None:
            unsent += framed([self._farewell(error)])
        with suppress(OSError):
            peer.socket.send(unsent)
        self._put_out(peer)

    def _put_out(self, peer: _Peer) -> None:
        if self._peers.pop(peer.identity, None) is not None:
            self._strangers.pop(peer.identity, None)
            self._held -= peer.held
            self._selector.unregister(peer.socket)
            peer.socket.close()


def _heard(peer: _Peer) -> float:
    return peer.heard


def _listen(path: str) -> tuple[socket.socket, str, int]:
    """A socket that listens at `path`, and the file's number.

    Raises:
        OSError: it cannot be had.
    """
    with suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(path)
        listener.listen(_BACKLOG)
        return listener, path, os.lstat(path).st_ino
    except BaseException:
        listener.close()
        raise

"""ZMTP 3, what ZeroMQ sockets speak, as one end of one connection: bytes in, messages out.

libzmq would speak it, too. But it collects all parts of a message before anybody sees the first,
however many come, and its listener for Unix sockets ends the process when no descriptor is left.
Here a message is a bounded number of bounded frames, or the connection ends. No I/O is done here.

The NULL mechanism alone: who may connect, the socket's file says. As in ZeroMQ's specification 23::

    greeting   FF 00×8 7F  03 00  "NULL" padded to 20  as-server 0  00×31
    command    04 or 06, size, name length, name, data          READY, PING, PONG, ...
    frame      00 last, 01 more follow; +02: size is 8 bytes, else 1
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from struct import Struct
from typing import Final

from sidestep.proto import RemoteProtocolError

GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)

_MORE, _LONG, _COMMAND = 1, 2, 4
_SIZE: Final = Struct(">Q")
_PROPERTY: Final = Struct(">I")
_MAX_COMMAND_BYTES: Final = 4096


class Connection:
    """One end that a peer has connected to.

    Args:
        own: our socket's type, as the peer is told.
        peers: the types of sockets that may connect.
        max_frame_bytes: the largest frame.
        max_parts: frames of one message at most.

    Attributes:
        ready: whether the peer has introduced itself.
        answers: bytes that must be sent, taken away by whoever sends them.
    """

    __slots__ = (
        "_buffer",
        "_greeted",
        "_max_frame_bytes",
        "_max_parts",
        "_own",
        "_parts",
        "_peers",
        "answers",
        "ready",
    )

    def __init__(
        self, own: str, peers: Collection[str], max_frame_bytes: int, max_parts: int = 1
    ) -> None:
        self.ready = False
        self.answers = GREETING + _command(b"READY", _properties({b"Socket-Type": own.encode()}))
        self._own = own
        self._peers = peers
        self._max_frame_bytes = max_frame_bytes
        self._max_parts = max_parts
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._greeted = False

    @property
    def held_bytes(self) -> int:
        """Memory of what has come and is no whole message yet."""
        return len(self._buffer) + sum(map(len, self._parts))

    def receive(self, data: bytes) -> list[list[bytes]]:
        """The messages that `data` completes, each as its frames.

        Raises:
            RemoteProtocolError: what came is not ZMTP 3, or beyond the limits. What was whole
                before it is lost with the connection, which must be closed.
        """
        buffer = self._buffer
        buffer += data
        if not self._greeted and not self._greet():
            return []
        messages: list[list[bytes]] = []
        while (frame := self._frame()) is not None:
            flags, body = frame
            if flags & _COMMAND:
                self._obey(body)
                continue
            if not self.ready:
                raise RemoteProtocolError("no_protocol", "a message before the READY command")
            self._parts.append(body)
            if flags & _MORE:
                if len(self._parts) >= self._max_parts:
                    raise RemoteProtocolError(
                        "multipart", f"a message of over {self._max_parts} frame(s)"
                    )
                continue
            messages.append(self._parts)
            self._parts = []
        return messages

    def _greet(self) -> bool:
        """Look at the greeting as far as it has come; whether it is whole."""
        buffer, whole = self._buffer, len(GREETING)
        wrong = buffer[0] != 0xFF or (len(buffer) > 9 and buffer[9] != 0x7F)
        if wrong:
            raise RemoteProtocolError("no_protocol", "this is no ZeroMQ peer")
        if len(buffer) > 10 and buffer[10] < 3:
            raise RemoteProtocolError("no_protocol", "a peer of ZMTP before version 3")
        if len(buffer) < whole:
            return False
        mechanism = bytes(buffer[12:32]).rstrip(b"\0")
        if mechanism != b"NULL":
            raise RemoteProtocolError("no_protocol", f"mechanism {mechanism!a}, expected NULL")
        del buffer[:whole]
        self._greeted = True
        return True

    def _frame(self) -> tuple[int, bytes] | None:
        """Flags and body of the next frame, taken from the buffer; None while it is not whole."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        flags = buffer[0]
        if flags > _COMMAND | _LONG or flags & (_COMMAND | _MORE) == _COMMAND | _MORE:
            raise RemoteProtocolError("no_protocol", f"a frame with flags {flags}")
        start, size = 2, buffer[1]
        if flags & _LONG:
            start = 9
            if len(buffer) < start:
                return None
            size = _SIZE.unpack_from(buffer, 1)[0]
        most = _MAX_COMMAND_BYTES if flags & _COMMAND else self._max_frame_bytes
        if size > most:
            raise RemoteProtocolError("too_large", f"a frame of {size} bytes, at most {most}")
        end = start + size
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view, view[start:end] as body:
            frame = flags, bytes(body)
        del buffer[:end]
        return frame

    def _obey(self, command: bytes) -> None:
        size = command[0] if command else 0
        name, data = command[1 : 1 + size], command[1 + size :]
        if name == b"READY" and not self.ready:
            kind = _property(data, b"socket-type").decode("ascii", "replace")
            if kind not in self._peers:
                said = f"a {kind or 'nameless'} socket, expected {' or '.join(self._peers)}"[:200]
                reason = said.encode("ascii", "replace")
                self.answers += _command(b"ERROR", bytes([len(reason)]) + reason)
                raise RemoteProtocolError("no_protocol", said)
            self.ready = True
        elif name == b"PING":
            self.answers += _command(b"PONG", data[2:18])  # after its time to live: its context
        elif name == b"ERROR":
            raise RemoteProtocolError("no_protocol", f"the peer says {data[1:200]!a}")


def framed(frames: Sequence[bytes]) -> bytes:
    """One message as it is sent."""
    last = len(frames) - 1
    return b"".join(
        piece
        for at, frame in enumerate(frames)
        for piece in (_head(0 if at == last else _MORE, len(frame)), frame)
    )


def _head(flags: int, size: int) -> bytes:
    if size < 256:
        return bytes((flags, size))
    return bytes((flags | _LONG,)) + _SIZE.pack(size)


def _command(name: bytes, data: bytes) -> bytes:
    body = bytes([len(name)]) + name + data
    return _head(_COMMAND, len(body)) + body


def _properties(properties: dict[bytes, bytes]) -> bytes:
    return b"".join(
        bytes([len(name)]) + name + _PROPERTY.pack(len(value)) + value
        for name, value in properties.items()
    )


def _property(data: bytes, wanted: bytes) -> bytes:
    """The value of one of the properties that `data` lists; empty when it is not there."""
    at = 0
    while at < len(data):
        name = data[at + 1 : at + 1 + data[at]]
        at += 1 + len(name)
        head = data[at : at + _PROPERTY.size]
        if len(head) < _PROPERTY.size:
            break
        size = int(_PROPERTY.unpack(head)[0])
        at += _PROPERTY.size
        if name.lower() == wanted:
            return data[at : at + size]
        at += size
    return b""

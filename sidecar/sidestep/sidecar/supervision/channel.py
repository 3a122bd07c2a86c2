"""Messages between the daemon and the processes it starts: MessagePack maps over a socketpair.

The far end's death is an end of file here, at once, whatever it died of: that is how workers
notice that their daemon has gone.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Final, cast

import msgpack

_LENGTH: Final = struct.Struct("<I")
MAX_MESSAGE_BYTES: Final = 64 << 20


class ChannelClosedError(Exception):
    """The process at the other end has gone."""


class Channel:
    """One end of a socketpair; `send` and `receive` by one thread each."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()

    def fileno(self) -> int:
        """For a poller."""
        return self._sock.fileno()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, all of it.

        Raises:
            ChannelClosedError: nobody is there any more, or nobody reads.
        """
        data = cast("bytes", msgpack.packb(message))
        try:
            self._sock.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            raise ChannelClosedError(str(error)) from None

    def receive(self) -> list[dict[str, Any]]:
        """Wait for bytes; the messages that are whole now (none, one or several).

        Raises:
            ChannelClosedError: the other end has gone.
        """
        try:
            data = self._sock.recv(1 << 20)
        except (BlockingIOError, InterruptedError, TimeoutError):
            return []
        except OSError as error:
            raise ChannelClosedError(str(error)) from None
        if not data:
            raise ChannelClosedError("end of file")
        self._buffer += data
        messages: list[dict[str, Any]] = []
        while len(self._buffer) >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer)
            if size > MAX_MESSAGE_BYTES:
                raise ChannelClosedError(f"a message of {size} bytes")
            end = _LENGTH.size + size
            if len(self._buffer) < end:
                break
            messages.append(msgpack.unpackb(bytes(self._buffer[_LENGTH.size : end])))
            del self._buffer[:end]
        return messages

    def close(self) -> None:
        """Close this end."""
        self._sock.close()

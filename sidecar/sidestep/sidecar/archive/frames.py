"""Takes the frames out of one archive file, in pieces of a megabyte, up to where it is damaged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

import google_crc32c

from ..sinks.archive_format import MAX_BODY_BYTES
from ..sinks.event_file import CRC, HEAD, masked, record_head

_PIECE_BYTES: Final = 1 << 20

_MAX_CACHED_HEADS: Final = 4096


class FrameReader:
    """The frames of a file, as long as it was when this was made.

    Attributes:
        size: how long that is, in bytes.
        offset: where the last frame that was given out ends.
        problem: what is wrong at `offset`; None as long as nothing is.
    """

    def __init__(self, fd: int) -> None:
        """Read from the descriptor `fd`, which is closed with this."""
        self._fd = fd
        self.size = os.fstat(fd).st_size
        self.offset = 0
        self.problem: str | None = None
        self._heads: dict[int, bytes] = {}  # by the length of a body: few are different

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def bodies(self) -> Iterator[list[bytes]]:
        """Yield the bodies of the frames, those of about a megabyte at a time, in order."""
        wanted = _PIECE_BYTES
        while self.problem is None and self.offset < self.size:
            piece = os.pread(self._fd, min(wanted, self.size - self.offset), self.offset)
            found = self._split(piece)
            if found:
                wanted = _PIECE_BYTES
                yield found
            elif self.problem is None:
                if len(piece) < wanted:
                    self._torn()
                wanted = MAX_BODY_BYTES + HEAD.size + CRC.size

    def _split(self, piece: bytes) -> list[bytes]:
        """The bodies of the whole frames that `piece` begins with."""
        found: list[bytes] = []
        at, end = 0, len(piece)
        heads, crc32c = self._heads, google_crc32c.value
        while end - at >= HEAD.size:
            length, _ = HEAD.unpack_from(piece, at)
            start = at + HEAD.size
            if piece[at:start] != (heads.get(length) or self._head(length)):
                self.problem = "damaged length of a frame"
                break
            stop = start + length
            if stop + CRC.size > end:
                break
            body = piece[start:stop]
            if CRC.unpack_from(piece, stop)[0] != masked(crc32c(body)):
                self.problem = "damaged frame"
                break
            found.append(body)
            at = stop + CRC.size
        self.offset += at
        return found

    def _head(self, length: int) -> bytes:
        """What stands before a body of `length` bytes; nothing when no body is as long."""
        if length > MAX_BODY_BYTES:
            return b""
        if len(self._heads) >= _MAX_CACHED_HEADS:
            self._heads.clear()
        head = self._heads[length] = record_head(length)
        return head

    def _torn(self) -> None:
        """The file ends inside a frame: torn, unless somebody is still writing it."""
        if os.fstat(self._fd).st_size > self.size:
            self.size = self.offset
        else:
            self.problem = "torn frame"

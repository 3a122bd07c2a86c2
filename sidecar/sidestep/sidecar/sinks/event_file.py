"""TensorBoard's event file: its framing, and a file that grows by whole records at a known offset.

An event file is a sequence of TFRecords::

    0        8             12       12 + length
    +--------+-------------+--------+-------------+
    | length | CRC32C of   | body   | CRC32C of   |
    | u64    | length, u32 | (Event)| body, u32   |
    +--------+-------------+--------+-------------+

A reader stops at a record that is torn, so `EventFile.write` takes whole records, hands them over
in one system call, and takes back what a failure left of them. It writes at its own offset, never
"at the end": a process that should be dead and writes the same bytes once more does no harm.
No symbolic link is followed below the root that the caller names.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Final

import google_crc32c

from sidestep.proto import SidestepError

HEAD: Final = Struct("<QI")
"""Length of the body and its masked CRC32C."""

CRC: Final = Struct("<I")
"""The masked CRC32C that follows the body."""

MASK_DELTA: Final = 0xA282EAD8
"""TFRecord's: it stores no plain CRC, since a CRC of bytes that hold their own CRC says little."""

MAX_FILE_BYTES: Final = 1 << 60
"""No file is longer: an offset beyond it is no offset."""

_LENGTH: Final = Struct("<Q")
_VERSION: Final = b"brain.Event:2"


class LostFileError(SidestepError):
    """The file that was to be continued is gone, or holds less than was written to it."""


def masked(crc: int) -> int:
    """The CRC32C `crc` as a TFRecord stores it."""
    return (((crc >> 15) | (crc << 17)) + MASK_DELTA) & 0xFFFFFFFF


def record_head(length: int) -> bytes:
    """What stands before a body of `length` bytes."""
    return HEAD.pack(length, masked(google_crc32c.value(_LENGTH.pack(length))))


def record(body: bytes) -> bytes:
    """`body` as one TFRecord."""
    return record_head(len(body)) + body + CRC.pack(masked(google_crc32c.value(body)))


def version_record(wall_time_s: float) -> bytes:
    """The record that every event file begins with."""
    # Event: field 1 is the wall time, a double; field 3 the version, text.
    return record(
        b"\x09" + Struct("<d").pack(wall_time_s) + b"\x1a" + bytes([len(_VERSION)]) + _VERSION
    )


def open_folder(root: Path, parts: Sequence[str], *, make: bool) -> int:
    """Open the folder `parts` under `root`.

    Args:
        root: links in its path are the user's own and are followed.
        parts: single names below it; none of them may be a symbolic link.
        make: whether to make what is missing of it.

    Returns:
        A file descriptor of the folder, to be closed by the caller.

    Raises:
        OSError: the folder is not there or cannot be made, or a part is a link or no folder.
    """
    if make:
        root.mkdir(parents=True, exist_ok=True)
    path = root
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts:
        path /= part
        try:
            if part in ("", ".", "..") or "/" in part or "\0" in part:
                raise OSError(errno.EINVAL, "not the name of one folder", str(path))
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=folder)
            below = _open_at(folder, part, path, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(folder)
        folder = below
    return folder


class EventFile:
    """A file that is written from a known offset on, record by record.

    Attributes:
        path: where it is.
        offset: bytes that are in it.
    """

    def __init__(self, folder: int, path: Path, offset: int) -> None:
        """Open the file and cut it to `offset`.

        Args:
            folder: descriptor of the folder that `path` is in.
            path: the file; created when `offset` is 0.
            offset: where its last good record ends.

        Raises:
            LostFileError: there is no such file with at least `offset` bytes.
            OSError: it cannot be opened, or is a link or no plain file.
        """
        self.path = path
        self.offset = offset
        # O_NONBLOCK: opening a FIFO that somebody put there must fail, not wait for its reader.
        flags = os.O_WRONLY | os.O_NONBLOCK | (os.O_CREAT if offset == 0 else 0)
        try:
            self._fd = _open_at(folder, path.name, path, flags)
        except FileNotFoundError:
            raise LostFileError(f"{path} is gone") from None
        try:
            self._cut()
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, records: bytes | bytearray) -> None:
        """Hand whole records to the operating system: all of them or, when it raises, none.

        Raises:
            OSError: there is no room, or the file cannot be written.
        """
        done = 0
        try:
            # Released at once: a traceback that kept a view alive would lock the caller's buffer.
            with memoryview(records) as view:
                while done < len(view):
                    with view[done:] as rest:
                        done += os.pwrite(self._fd, rest, self.offset + done)
        except OSError:
            with suppress(OSError):  # should this fail too, the next open cuts the file
                os.ftruncate(self._fd, self.offset)
            raise
        self.offset += done

    def loss(self) -> str | None:
        """Why a reader no longer finds at `path` what was written, or None when it does.

        Raises:
            OSError: it cannot be told.
        """
        ours = os.fstat(self._fd)
        try:
            found = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return f"{self.path} is gone"
        if (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino):
            return f"{self.path} is another file now"
        if found.st_size < self.offset:
            return _shorter(self.path, found.st_size, self.offset)
        return None

    def _cut(self) -> None:
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a plain file", str(self.path))
        if found.st_size < self.offset:
            raise LostFileError(_shorter(self.path, found.st_size, self.offset))
        os.ftruncate(self._fd, self.offset)

    def close(self) -> None:
        """Close the descriptor; nothing is held back that would have to be written."""
        os.close(self._fd)


def _shorter(path: Path, size: int, offset: int) -> str:
    return f"{path} has {size} bytes of the {offset} that were written"


def _open_at(folder: int, name: str, path: Path, flags: int) -> int:
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=folder)
    except OSError as error:
        # O_DIRECTORY makes it ENOTDIR for a link too; say which it is.
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
            raise OSError(
                errno.ELOOP, "is a symbolic link, which is not followed here", str(path)
            ) from None
        error.filename = str(path)
        raise

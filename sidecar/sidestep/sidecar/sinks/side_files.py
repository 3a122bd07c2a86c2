"""Files beside the events: replaced whole, and never through a link."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from .event_file import open_folder

_MAX_READ_BYTES: Final = 16 << 20
"""Of a file that is read before it is written: the projector's list of embeddings has kilobytes."""


def write_side_file(
    root: Path,
    path: Sequence[str],
    content: Callable[[bytes | None], Iterable[bytes]],
    *,
    reads: bool,
) -> None:
    """Replace a file by a rename: a crash leaves the old one or the new one.

    Args:
        root: links in its path are the user's own and are followed.
        path: the folders below it and the file's name; a link in their places is not followed.
        content: makes the bytes of what the file holds (None: no file, or it does not ask).
        reads: whether `content` asks for what is there.

    Raises:
        OSError: the file cannot be written.
        Exception: whatever `content` raises; the file is then as it was.
    """
    *below, name = path
    folder = open_folder(root, below, make=True)
    draft = f".{name}.new"
    try:
        old = _read(folder, name) if reads else None
        with suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=folder)  # of a worker that died
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(draft, flags, 0o666, dir_fd=folder), "wb") as file:
                file.writelines(content(old))
            os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft, dir_fd=folder)
            raise
    finally:
        os.close(folder)


def _read(folder: int, name: str) -> bytes | None:
    """What a plain file holds; None when there is none, or a link, which is replaced."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise
    with open(file, "rb") as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None
        data = opened.read(_MAX_READ_BYTES + 1)
    if len(data) > _MAX_READ_BYTES:
        raise ValueError(f"{name} has over {_MAX_READ_BYTES} bytes: it is none of ours")
    return data

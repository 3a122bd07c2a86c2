"""Copies a run's files to object storage as they grow, through fsspec.

An object cannot be appended to: each copy is of the whole file, and replaces the one before it at
once. What is copied so often is bounded in two ways: a file is copied again after `interval_s`, and
not before its size would have passed at `_BYTES_A_SECOND`, so that a file of 400 MB costs no more
than one of 60 MB. Nothing there is ever deleted; a file that is deleted here stays there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

_BYTES_A_SECOND: Final = 4_000_000
_EVENT_FILE: Final = "events.out.tfevents."


class FileSystem(Protocol):
    """What is used of `fsspec.AbstractFileSystem`."""

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        """Copy a local file to `rpath`, replacing what is there."""
        ...

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder, where the storage knows such."""
        ...


@dataclass(frozen=True, slots=True)
class Folder:
    """What is copied where.

    Attributes:
        local: a folder.
        remote: its name below the mirror's root, with ``/``.
        below: whether the folders in it belong to it; else its event files alone are copied.
    """

    local: Path
    remote: str
    below: bool = True


@dataclass(slots=True)
class _Copied:
    """A file's last copy: what it was like before it was read, and when that began."""

    version: tuple[int, int, int]
    at: float


class Mirror:
    """One run's copy; not thread-safe.

    Args:
        file_system: where to.
        root: the folder, bucket or prefix there.
        interval_s: seconds between two copies of a file, at least.
        folders: whether there are folders, which must be made. An object storage has none, and
            asked for one it would make a bucket, out of a misspelt name too.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        file_system: FileSystem,
        root: str,
        interval_s: float,
        *,
        folders: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folders = folders
        self._file_system = file_system
        self._root = root.rstrip("/")
        self._interval_s = interval_s
        self._clock = clock
        self._copied: dict[str, _Copied] = {}
        self._made: set[str] = set()

    def copy(
        self, folders: list[Folder], *, all_now: bool, before_each: Callable[[int], None]
    ) -> bool:
        """Copy what has changed and is due.

        Args:
            folders: what belongs to the run.
            all_now: whether everything that has changed is due.
            before_each: called before each file with its size, since each may take long.

        Returns:
            Whether nothing that has changed was left for later.

        Raises:
            Exception: whatever the file system's library raises.
        """
        complete = True
        for path, remote in _files(folders):
            try:
                found = os.stat(path)
            except FileNotFoundError:
                continue  # deleted just now
            # Whoever cuts a file back and writes on changes its time.
            version = found.st_ino, found.st_size, found.st_mtime_ns
            last = self._copied.get(path)
            if last is not None and last.version == version:
                continue
            now = self._clock()
            pause_s = max(self._interval_s, found.st_size / _BYTES_A_SECOND)
            if last is not None and not all_now and now - last.at < pause_s:
                complete = False
                continue
            before_each(found.st_size)
            self._put(path, f"{self._root}/{remote}")
            self._copied[path] = _Copied(version, now)
        return complete

    def _put(self, path: str, remote: str) -> None:
        parent = remote.rpartition("/")[0]
        if self._folders and parent not in self._made:
            self._file_system.makedirs(parent, exist_ok=True)
            self._made.add(parent)
        try:
            self._file_system.put_file(path, remote)
        except FileNotFoundError:
            if os.path.exists(path):
                raise  # it is the other end that is not there


def _files(folders: list[Folder]) -> Iterator[tuple[str, str]]:
    """Every file, and its name below the mirror's root; links and drafts are left out."""
    for folder in folders:
        for place, below, names in os.walk(folder.local):
            if not folder.below:
                below.clear()
            below.sort()
            inside = os.path.relpath(place, folder.local)
            prefix = folder.remote if inside == "." else f"{folder.remote}/{inside}"
            for name in sorted(names):
                path = os.path.join(place, name)
                is_wanted = folder.below or name.startswith(_EVENT_FILE)
                if is_wanted and not name.startswith(".") and not os.path.islink(path):
                    yield path, f"{prefix}/{name}"

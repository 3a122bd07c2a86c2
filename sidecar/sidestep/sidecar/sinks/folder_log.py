"""The event log of one folder: cut back after a crash, and begun anew when its file is lost.

A log is where it is by three numbers: what its file is called, how much is in it, and how much of
that is committed. Only the last one is in the state that a sink stores. A file that somebody
deleted, replaced or cut is not missed by its writer: that is looked for before each write, and what
is not written yet goes into a new file. What was in the old one went with it.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, cast

from sidestep.proto.limits import MAX_SUFFIX_BYTES
from sidestep.proto.naming import safe_name

from .event_file import MAX_FILE_BYTES, EventFile, LostFileError, open_folder, version_record

_NAME: Final = re.compile(r"events\.out\.tfevents\.(\d{10,12})\.[^/\0]+")
_FILE_NUMBERS: Final = itertools.count()  # of this process, as TensorBoard's own writer counts
_UNSAFE: Final = re.compile(r"[^\w.+=@,-]", re.UNICODE)

_MAX_PART_BYTES: Final = 255
"""What file systems take."""

_MAX_DEPTH: Final = 8
"""Folders in each other below a run's."""


class FolderLog:
    """Appends to one folder's newest event file.

    Attributes:
        pending: whole records that the file does not have yet.
    """

    def __init__(
        self,
        root: Path,
        parts: tuple[str, ...],
        suffix: str,
        say: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        """Describe a log; nothing is opened or made.

        Args:
            root: the log directory; links in its path are the user's own and are followed.
            parts: the names of the folder below it; none may be a link.
            suffix: what ends the names of its files, made safe (see `safe_suffix`).
            say: tells people of a loss.
            clock: seconds since the epoch; it names files.
        """
        self.pending = bytearray()
        self._root = root
        self._parts = parts
        self._suffix = suffix
        self._say = say
        self._clock = clock
        self._file: EventFile | None = None
        self._name = ""
        self._offset = self._committed = 0
        self._lost = False

    @property
    def begun(self) -> bool:
        """Whether it ever had a file."""
        return bool(self._name)

    def state(self) -> dict[str, object]:
        """What is committed: ``{"file": name, "offset": bytes}``."""
        return {"file": self._name, "offset": self._committed}

    def restore(self, state: object) -> bool:
        """Take up a stored state: cut the file back to it.

        Returns:
            Whether it is a state that a log has ever stored; if not, nothing was done.

        Raises:
            OSError: the file is there and cannot be used.
        """
        fields = cast("dict[str, Any]", state if isinstance(state, dict) else {})
        name, offset = fields.get("file"), fields.get("offset")
        if not isinstance(name, str) or not isinstance(offset, int) or not _NAME.fullmatch(name):
            return False
        if not 0 <= offset < MAX_FILE_BYTES:
            return False
        self._name, self._offset, self._committed = name, offset, offset
        self._resume()
        return True

    def prepare(self) -> bool:
        """Look at the file before a write.

        Returns:
            True when a new file is needed: it has got a name now, and the state with this name
            must be stored before `write` or `create` make the file.

        Raises:
            OSError: it cannot be told, or the folder cannot be used.
        """
        if self._file is not None and (loss := self._file.loss()):
            self._say(f"tensorboard: {loss}; going on in a new file")
            self.release()
            self._lost = True
        if not self.pending:
            return False
        if self._file is None and self._name and not self._lost:
            self._resume()
        if self._file is None:
            self.choose_name()
            return True
        return False

    def choose_name(self) -> None:
        """Choose the name of a new file. TensorBoard reads a folder's files in their names' order.

        Raises:
            OSError: the folder cannot be made or read.
        """
        folder = open_folder(self._root, self._parts, make=True)
        try:
            # Its own lost file too: a TensorBoard that had it open goes on from there.
            taken = [_second_of(name) for name in (*os.listdir(folder), self._name)]
        finally:
            os.close(folder)
        second = max(int(self._clock()), *(number + 1 for number in taken), 0)
        host = socket.gethostname().replace("/", "_")
        number = next(_FILE_NUMBERS)
        self._name = (
            f"events.out.tfevents.{second:010d}.{host}.{os.getpid()}.{number}{self._suffix}"
        )
        self._offset = self._committed = 0
        self._lost = False

    def create(self) -> EventFile:
        """The file, made or cut to what was written, with the record that each begins with.

        Raises:
            LostFileError: it is gone, or shorter.
            OSError: it cannot be opened or written.
        """
        folder = open_folder(self._root, self._parts, make=self._offset == 0)
        try:
            file = EventFile(folder, self._root.joinpath(*self._parts, self._name), self._offset)
        finally:
            os.close(folder)
        try:
            if file.offset == 0:
                file.write(version_record(_second_of(self._name)))
        except BaseException:
            file.close()
            raise
        self._file, self._offset = file, file.offset
        return file

    def write(self) -> None:
        """Hand all that is pending to the operating system; `prepare` has been called.

        Raises:
            OSError: the file cannot be written; nothing torn is left in it.
        """
        if self.pending:
            file = self._file or self.create()
            file.write(self.pending)
            self._offset = file.offset
            self.pending.clear()

    def commit(self) -> None:
        """All that was written is committed from now on."""
        if not self._lost:
            self._committed = self._offset

    def release(self) -> None:
        """Close the file; the next write opens it again."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _resume(self) -> None:
        try:
            self.create()
        except (LostFileError, FileNotFoundError) as loss:
            # A new file is begun as soon as there is something to write: somebody who deletes the
            # folder of a finished run does not want to find it again.
            self._say(
                f"tensorboard: cannot go on with {self._name}, a new file will be made: {loss}"
            )
            self._lost = True


@lru_cache(maxsize=4096)
def safe_folder(name: str) -> str:
    """The folder `name` below a run's, each of its names made safe; "" is the run's own.

    A name stays as it is where it can: it is what TensorBoard calls the run.

    Raises:
        ValueError: it is nested too deep, or holds no name at all.
    """
    parts = [_safe_part(part) for part in name.split("/") if part not in ("", ".")]
    if name and not 0 < len(parts) <= _MAX_DEPTH:
        raise ValueError(f"a folder has 1 to {_MAX_DEPTH} names, not {name!r:.200}")
    return "/".join(parts)


def is_safe_folder(name: object) -> bool:
    """Whether `name` is a folder below a run's, as `safe_folder` makes them."""
    try:
        return isinstance(name, str) and name != "" and safe_folder(name) == name
    except ValueError:
        return False


def _safe_part(part: str) -> str:
    fits = len(part.encode("utf-8", "replace")) <= _MAX_PART_BYTES
    return part if fits and part.isprintable() and part != ".." else safe_name(part)


def safe_suffix(suffix: object) -> str:
    """What a user wants at the end of event files' names, without what a name must not hold."""
    clean = _UNSAFE.sub("_", suffix) if isinstance(suffix, str) else ""
    return clean.encode("utf-8", "ignore")[:MAX_SUFFIX_BYTES].decode("utf-8", "ignore")


def _second_of(name: str) -> int:
    """The time in an event file's name, -1 for any other file."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else -1

"""The archive sink: every number of a run in float64, exactly once, in files that `export` reads.

The journal forgets what every sink has written; this is where the numbers stay as they were
emitted. How each is there once: the state that is stored with the cursor says how long the file
was when everything up to the cursor was in it; `open` cuts the file to that length, and what comes
after the cursor is handed over again and becomes the same bytes again. Values other than numbers
are not kept here.

A file that somebody deleted, replaced or cut is noticed before each write, and a new one is begun;
what was in the old one went with it. Files are not fsynced.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import google_crc32c

from ..rows.points import MixedBlock, Points, ScalarBlock
from . import archive_format as form
from .base import SinkContext, SinkState
from .event_file import CRC, HEAD, MAX_FILE_BYTES, EventFile, LostFileError, masked, open_folder

_FLUSH_BYTES: Final = 1 << 20
"""Blocks are handed to the system in portions of about this size, and at each commit."""


class ArchiveSink:
    """Writes one run's numbers to ``LOG_DIR/scalars/RUN/scalars.*``.

    Its state is ``{"file": name, "offset": bytes, "tags": where the newest definition is}``.
    After an error it must be opened anew, with the state of the last commit.
    """

    def __init__(self) -> None:
        self._context: SinkContext | None = None
        self._file: EventFile | None = None
        self._name = ""
        self._offset = 0
        self._newest_tags = 0
        self._tag_sets: dict[tuple[str, ...], int] = {}  # of the file
        # Not yet bytes: in another file their tag sets would have other numbers.
        self._pending: list[ScalarBlock | MixedBlock] = []
        self._pending_bytes = 0

    def open(self, context: SinkContext) -> None:
        """Cut the file back to where the last commit left it, or be ready to begin one.

        Raises:
            OSError: the log directory cannot be written, or has a symbolic link in the run's place.
        """
        self.close(finished=False)
        self._context = context
        state = context.state or {}
        name, offset, tags = state.get("file"), state.get("offset"), state.get("tags")
        if not (isinstance(name, str) and isinstance(offset, int) and isinstance(tags, int)):
            name, offset, tags = "", 0, 0
        if not 0 <= tags <= offset < MAX_FILE_BYTES:
            name, offset, tags = "", 0, 0
        self._name, self._offset, self._newest_tags = name, offset, tags
        if form.number_of(name) < 0:
            if state:
                context.log(f"archive: a state that it never stored, {state!r:.200}")
            self._start()
            return
        try:
            self._continue(name, offset, tags)
        except (LostFileError, FileNotFoundError, form.FormatError) as loss:
            # A new file is begun when there is something to write: somebody who deletes the folder
            # of a finished run does not want to find it again.
            context.log(f"archive: cannot go on with {name}, a new file will be made: {loss}")

    def write(self, points: Iterable[Points]) -> None:
        """Take the numbers among `points`.

        Raises:
            OSError: the file cannot be written.
        """
        for block in points:
            if isinstance(block, MixedBlock):
                self._pending.append(block)
                self._pending_bytes += 56 * len(block.steps) + block.values.nbytes
            elif isinstance(block, ScalarBlock):
                self._pending.append(block)
                self._pending_bytes += 64 + 16 * len(block.steps) + block.values.nbytes
            else:
                continue
            if self._pending_bytes >= _FLUSH_BYTES:
                self._flush()

    def commit(self) -> SinkState:
        """Hand everything to the operating system, and say how far the file goes.

        Raises:
            OSError: the file cannot be written; nothing torn is left in it.
        """
        self._flush()
        return self._state()

    def close(self, finished: bool) -> None:
        """Close the file. What was not committed is dropped: it will be handed over again."""
        self._pending, self._pending_bytes = [], 0
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _state(self) -> SinkState:
        return {"file": self._name, "offset": self._offset, "tags": self._newest_tags}

    def _flush(self) -> None:
        if self._file is not None and (loss := self._file.loss()):
            self._opened().log(f"archive: {loss}; going on in a new file")
            self._file.close()
            self._file = None
        if not self._pending:
            return
        file = self._file or self._start()
        fresh: dict[tuple[str, ...], tuple[int, int]] = {}
        file.write(b"".join(self._frames(file.offset, fresh)))
        self._offset = file.offset
        for tags, (tag_set, at) in fresh.items():
            self._tag_sets[tags], self._newest_tags = tag_set, at
        self._pending, self._pending_bytes = [], 0

    def _frames(
        self, at: int, fresh: dict[tuple[str, ...], tuple[int, int]]
    ) -> Iterator[bytes | bytearray]:
        """The pieces of all pending blocks' frames, the first of which comes to lie at `at`.

        What is defined in them goes into `fresh`, and into this object once it is written.
        """
        newest = self._newest_tags
        for block in self._pending:
            numbers: list[int] = []
            for tags in block.tag_sets if isinstance(block, MixedBlock) else (block.tags,):
                tag_set = self._tag_sets.get(tags)
                if tag_set is None and tags in fresh:
                    tag_set = fresh[tags][0]
                elif tag_set is None:
                    tag_set = len(self._tag_sets) + len(fresh)
                    definition = form.tags_frame(tag_set, tags, newest)
                    fresh[tags] = tag_set, at
                    newest = at
                    at += len(definition)
                    yield definition
                numbers.append(tag_set)
            if isinstance(block, MixedBlock):
                pieces: Iterable[bytes | bytearray] = (form.mixed_frames(numbers, block),)
            else:
                pieces = form.block_frames(numbers[0], block)
            for piece in pieces:
                at += len(piece)
                yield piece

    # --- files ---------------------------------------------------------------------------------

    def _start(self) -> EventFile:
        """Begin a new file, whose name is stored before the file exists."""
        folder = self._open_folder(make=True)
        try:
            taken = [form.number_of(name) for name in os.listdir(folder)]
        finally:
            os.close(folder)
        number = max([form.number_of(self._name), 0, *taken]) + 1
        self._name = form.file_name(number, socket.gethostname(), os.getpid())
        self._offset = self._newest_tags = 0
        self._opened().save(self._state())
        return self._continue(self._name, 0, 0)

    def _continue(self, name: str, offset: int, newest_tags: int) -> EventFile:
        folder = self._open_folder(make=offset == 0)
        try:
            file = EventFile(folder, self._folder() / name, offset)
            try:
                if offset == 0:
                    file.write(form.file_frame(self._opened().run.name))
                self._tag_sets = _tag_sets(folder, name, newest_tags, offset)
            except BaseException:
                file.close()
                raise
        finally:
            os.close(folder)
        self._file, self._offset = file, file.offset
        return file

    def _open_folder(self, *, make: bool) -> int:
        context = self._opened()
        return open_folder(Path(context.run.log_dir), (form.FOLDER, context.run_dir), make=make)

    def _folder(self) -> Path:
        context = self._opened()
        return Path(context.run.log_dir, form.FOLDER, context.run_dir)

    def _opened(self) -> SinkContext:
        if self._context is None:
            raise RuntimeError("the sink is not open: call open() first")
        return self._context


def _tag_sets(folder: int, name: str, newest: int, end: int) -> dict[tuple[str, ...], int]:
    """The tag sets of a file, along the chain of their definitions from the newest one on.

    Raises:
        FormatError: the file does not hold them.
        OSError: it cannot be read.
    """
    found: dict[tuple[str, ...], int] = {}
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        at = newest
        while at:
            tag_set, tags, previous = form.tags_of(_body(fd, at, end))
            found[tags] = tag_set
            # Strictly backwards, so that a damaged chain ends, too.
            at, end = previous, at
    finally:
        os.close(fd)
    if sorted(found.values()) != list(range(len(found))):
        raise form.FormatError("its tag sets are not all there")
    return found


def _body(fd: int, at: int, end: int) -> bytes:
    """The body of the frame at `at`, which ends at `end` or before."""
    head = os.pread(fd, HEAD.size, at) if 0 < at < end else b""
    if len(head) == HEAD.size:
        length = int(HEAD.unpack(head)[0])
        if length <= min(form.MAX_BODY_BYTES, end - at):
            data = os.pread(fd, length + CRC.size, at + HEAD.size)
            body = data[:length]
            if data[length:] == CRC.pack(masked(google_crc32c.value(body))):
                return body
    raise form.FormatError(f"no frame at byte {at}")

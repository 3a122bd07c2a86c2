"""The TensorBoard sink: every point in an event file exactly once, whenever its worker dies.

How: the state that is stored with the cursor says how long the event file was when everything
up to the cursor was in it. `open` cuts the file to that length, the worker hands over the points
after the cursor again, and they become the same bytes again, since nothing in an event depends on
when or in which portions it was written. A reader that had read on before the crash stays right.

A file that somebody deleted, replaced or cut is not missed by its writer: that is looked for before
each write, and what is not written yet goes into a new file. What was in the old one went with it.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from sidestep.proto import Value

from ..points import Points, ScalarBlock
from .base import SinkContext, SinkState
from .event_file import EventFile, LostFileError, open_folder, record, version_record
from .scalar_events import ScalarEvents

FOLDER: Final = "tensorboard"
"""The folder in the run's log directory that TensorBoard is pointed at."""

_FLUSH_BYTES: Final = 1 << 20
"""Points are handed to the system in portions of about this size, and at each commit."""

_MAX_COMPLAINTS: Final = 16
"""Kinds of values of which it is logged, once, that one was skipped: a peer can invent more."""

_NAME: Final = re.compile(r"events\.out\.tfevents\.(\d{10,12})\.[^/\0]+")
_FILE_NUMBERS: Final = itertools.count()  # of this process, as TensorBoard's own writer counts


class TensorBoardSink:
    """Writes one run's points to ``LOG_DIR/tensorboard/RUN/events.out.tfevents.*``.

    Its state is ``{"file": name, "offset": bytes, "skipped": values that it could not show}``.
    After an error it must be opened anew, with the state of the last commit.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Make a sink that is not open yet.

        Args:
            clock: seconds since the epoch; it names files and is in nothing else that is written.
        """
        self._clock = clock
        self._scalars = ScalarEvents()
        self._pending = bytearray()  # whole records that the file does not have yet
        self._file: EventFile | None = None
        self._context: SinkContext | None = None
        self._name = ""
        self._offset = 0
        self._skipped = self._skipped_committed = 0
        self._complaints: set[str] = set()

    def open(self, context: SinkContext) -> None:
        """Cut the event file back to where the last commit left it, or start one.

        Raises:
            OSError: the log directory cannot be written, or has a symbolic link in the run's place.
        """
        self.close(finished=False)
        self._context = context
        state = context.state or {}
        self._skipped = self._skipped_committed = _count(state.get("skipped"))
        name, offset = state.get("file"), state.get("offset")
        if not isinstance(name, str) or not isinstance(offset, int) or not _NAME.fullmatch(name):
            if state:
                context.log(f"tensorboard: a state that it never stored, {state!r:.200}")
            self._start()
            return
        try:
            self._continue(name, offset)
        except (LostFileError, FileNotFoundError) as loss:
            # A new file is started as soon as there is something to write: somebody who deletes
            # the folder of a finished run does not want to find it again.
            context.log(f"tensorboard: cannot go on with {name}, a new file will be made: {loss}")
            self._name, self._offset = name, offset

    def write(self, points: Iterable[Points]) -> None:
        """Take points; a value of a kind that it does not know is skipped and counted.

        Raises:
            OSError: the file cannot be written.
        """
        for point in points:
            if isinstance(point, ScalarBlock):
                for records in self._scalars.records(point):
                    self._append(records)
            else:
                self._append(self._rendered(point))

    def commit(self) -> SinkState:
        """Hand everything to the operating system, and say how far the file goes.

        Raises:
            OSError: the file cannot be written; nothing torn is left in it.
        """
        self._flush()
        self._skipped_committed = self._skipped
        return self._state()

    def close(self, finished: bool) -> None:
        """Close the file. What was not committed is dropped: it will be handed over again."""
        self._pending = bytearray()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _state(self) -> SinkState:
        return {"file": self._name, "offset": self._offset, "skipped": self._skipped_committed}

    def _append(self, records: bytes | memoryview) -> None:
        self._pending += records
        if len(self._pending) >= _FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._file is not None and (loss := self._file.loss()):
            self._opened().log(f"tensorboard: {loss}; going on in a new file")
            self._file.close()
            self._file = None
        if not self._pending:
            return
        file = self._file or self._start()
        file.write(self._pending)
        self._offset = file.offset
        self._pending.clear()

    def _start(self) -> EventFile:
        """Begin a new file, whose name is stored before the file exists."""
        context = self._opened()
        folder = self._open_folder(make=True)
        try:
            taken = [_second_of(name) for name in os.listdir(folder)]
        finally:
            os.close(folder)
        # TensorBoard reads a run's files in the order of their names and never turns back.
        second = max(int(self._clock()), *(number + 1 for number in taken), 0)
        host = socket.gethostname().replace("/", "_")
        self._name = f"events.out.tfevents.{second:010d}.{host}.{os.getpid()}.{next(_FILE_NUMBERS)}"
        self._offset = 0
        context.save(self._state())
        return self._continue(self._name, 0)

    def _continue(self, name: str, offset: int) -> EventFile:
        folder = self._open_folder(make=offset == 0)
        try:
            file = EventFile(folder, self._folder() / name, offset)
        finally:
            os.close(folder)
        try:
            if file.offset == 0:
                file.write(version_record(_second_of(name)))
        except BaseException:
            file.close()
            raise
        self._file, self._name, self._offset = file, name, file.offset
        return file

    def _open_folder(self, *, make: bool) -> int:
        context = self._opened()
        return open_folder(Path(context.run.log_dir), (FOLDER, context.run_dir), make=make)

    def _folder(self) -> Path:
        context = self._opened()
        return Path(context.run.log_dir, FOLDER, context.run_dir)

    def _opened(self) -> SinkContext:
        if self._context is None:
            raise RuntimeError("the sink is not open: call open() first")
        return self._context

    def _rendered(self, value: Value) -> bytes:
        """The record that shows `value`, or nothing."""
        from .tensorboard_values import IGNORED, event_of  # protocol buffers: not for numbers alone

        if value.kind in IGNORED:
            return b""
        try:
            return record(event_of(value))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # one bad value must not stop the run's curves
            self._skipped += 1
            if value.kind not in self._complaints and len(self._complaints) < _MAX_COMPLAINTS:
                self._complaints.add(value.kind)
                self._opened().log(
                    f"tensorboard: skipped {value.kind[:64]!r} under {value.tag[:200]!r} at step "
                    f"{value.step}, and will skip others without a word: {error!r:.300}"
                )
            return b""


def _second_of(name: str) -> int:
    """The time in an event file's name, -1 for any other file."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else -1


def _count(number: object) -> int:
    return number if isinstance(number, int) else 0

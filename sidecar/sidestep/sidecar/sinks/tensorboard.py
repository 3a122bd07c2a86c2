"""The TensorBoard sink: every point in an event file exactly once, whenever its worker dies.

How: the state that is stored with the cursor says how long each event file was when everything
up to the cursor was in it. `open` cuts the files to that length, the worker hands over the points
after the cursor again, and they become the same bytes again, since nothing in an event depends on
when or in which portions it was written. A reader that had read on before the crash stays right.

A run has an event file in its own folder, and one in each folder below it that its values ask for
(see `series`). Some values have files beside the events: those are written when the value is
handed over, whole, and written the same way once more after a crash.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast

from sidestep.proto import Value

from ..rows.points import MixedBlock, Points, ScalarBlock
from .base import SinkContext, SinkState
from .event_file import record
from .folder_log import FolderLog, is_safe_folder, safe_folder, safe_suffix
from .scalar_events import ScalarEvents
from .series import PLAIN, SeriesTable, tensor_records
from .side_files import write_side_file

FOLDER: Final = "tensorboard"
"""The folder in the run's log directory that TensorBoard is pointed at."""

_FLUSH_BYTES: Final = 1 << 20
"""Points are handed to the system in portions of about this size, and at each commit."""

_SMALL_ROWS: Final = 64
"""Blocks of fewer rows wait for each other: together they cost a fraction."""

_GATHERED_NUMBERS: Final = 32 << 10
"""When they have so many numbers, some 800 KiB of records, they are written."""

_MAX_FOLDERS: Final = 1000
"""Folders below one run's: each is a file, and stored with every commit."""

_MAX_OPEN: Final = 64
"""With more folders than this, their files are opened for each write: descriptors are limited."""

_MAX_COMPLAINTS: Final = 16
"""Kinds of values of which it is logged, once, that one was skipped: a peer can invent more."""


class TensorBoardSink:
    """Writes one run's points to ``LOG_DIR/tensorboard/RUN/events.out.tfevents.*``, and below.

    Its state is ``{"file": name, "offset": bytes, "skipped": values that it could not show}``, with
    ``"folders": {folder: {"file", "offset"}}`` and ``"series": {tag: [folder, name, style]}`` where
    there are any. After an error it must be opened anew, with the state of the last commit.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """Make a sink that is not open yet.

        Args:
            clock: seconds since the epoch; it names files and is in nothing else that is written.
        """
        self._clock = clock
        self._scalars = ScalarEvents()
        self._context: SinkContext | None = None
        self._own: FolderLog | None = None
        self._below: dict[str, FolderLog] = {}
        self._pending_bytes = 0
        self._gathered: list[ScalarBlock | MixedBlock] = []
        self._gathered_numbers = 0
        self._series = SeriesTable()
        self._series_committed: dict[str, list[str]] = {}
        self._skipped = self._skipped_committed = 0
        self._complaints: set[str] = set()

    def open(self, context: SinkContext) -> None:
        """Cut the event files back to where the last commit left them, or start one.

        Raises:
            OSError: the log directory cannot be written, or has a symbolic link in the run's place.
        """
        self.close(finished=False)
        self._context = context
        state = context.state or {}
        self._skipped = self._skipped_committed = _count(state.get("skipped"))
        self._series = SeriesTable(state.get("series"))
        self._series_committed = self._series.state()
        self._own = own = self._log("")
        for folder, stored in _mapping(state.get("folders")).items():
            if len(self._below) < _MAX_FOLDERS and is_safe_folder(folder):
                log = self._log(folder)
                if log.restore(stored):
                    self._below[folder] = log
                    self._release(log)
        if not own.restore(state):
            if state:
                context.log(f"tensorboard: a state that it never stored, {state!r:.200}")
            own.choose_name()
            context.save(self._state())
            own.create()

    def write(self, points: Iterable[Points]) -> None:
        """Take points; a value of a kind that it does not know is skipped and counted.

        Raises:
            OSError: a file cannot be written.
        """
        self._opened()
        for point in points:
            if not isinstance(point, (ScalarBlock, MixedBlock)):
                self._put_gathered()  # in the order of their emission, however they come here
                self._take(point)
            elif self._series:
                self._put_gathered()
                for block in point.alone() if isinstance(point, MixedBlock) else (point,):
                    self._take_divided(block)
            elif isinstance(point, MixedBlock) or len(point.steps) < _SMALL_ROWS:
                self._gathered.append(point)
                self._gathered_numbers += point.values.size
                if self._gathered_numbers >= _GATHERED_NUMBERS:
                    self._put_gathered()
            else:
                self._put_gathered()
                for records in self._scalars.records(point):
                    self._append(self._opened(), records)

    def commit(self) -> SinkState:
        """Hand everything to the operating system, and say how far the files go.

        Raises:
            OSError: a file cannot be written; nothing torn is left in it.
        """
        self._put_gathered()
        self._flush()
        for log in (self._opened(), *self._below.values()):
            log.commit()
        self._skipped_committed = self._skipped
        self._series_committed = self._series.state()
        return self._state()

    def close(self, finished: bool) -> None:
        """Close the files. What was not committed is dropped: it will be handed over again."""
        logs = [*self._below.values(), *([self._own] if self._own else [])]
        self._own, self._below, self._pending_bytes = None, {}, 0
        self._gathered, self._gathered_numbers = [], 0
        for log in logs:
            log.release()

    # --- points to records ---------------------------------------------------------------------

    def _put_gathered(self) -> None:
        blocks, self._gathered, self._gathered_numbers = self._gathered, [], 0
        if blocks:
            self._append(self._opened(), self._scalars.gathered(blocks))

    def _take_divided(self, block: ScalarBlock) -> None:
        for folder, style, part in self._series.divided(block):
            log = self._log_of_scalars(folder, len(part.steps) * len(part.tags))
            if log is not None:
                shown = (
                    self._scalars.records(part) if style == PLAIN else tensor_records(part, style)
                )
                for records in shown:
                    self._append(log, records)

    def _log_of_scalars(self, folder: str, count: int) -> FolderLog | None:
        try:
            return self._log_below(folder)
        except ValueError as error:
            self._skip("scalars", f"{count} of them in folder {folder!r:.200}", error, count)
            return None

    def _take(self, value: Value) -> None:
        """Show `value`, if it can be shown."""
        try:
            if value.kind == "series":
                self._series.learn(value)
                return
            # Protocol buffers: not for numbers alone.
            from .tensorboard_values import IGNORED, rendered_of

            if value.kind in IGNORED:
                return
            try:
                shown = rendered_of(value)
            except OSError as error:  # an image library's, and no disk's
                raise ValueError(str(error)) from error
            events = [(self._log_below(folder), record(event)) for folder, event in shown.events]
            for file in shown.files:
                path = (*self._parts(), *file.path)
                write_side_file(self._root(), path, file.content, reads=file.reads)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # noqa: BLE001  # one bad value must not stop the run's curves
            self._skip(value.kind, f"under {value.tag[:200]!r} at step {value.step}", error)
            return
        for log, records in events:
            self._append(log, records)

    def _skip(self, kind: str, which: str, error: Exception, count: int = 1) -> None:
        self._skipped += count
        if kind not in self._complaints and len(self._complaints) < _MAX_COMPLAINTS:
            self._complaints.add(kind)
            self._said(
                f"tensorboard: skipped {kind[:64]!r} {which}, and will skip others without a word: "
                f"{error!r:.300}"
            )

    # --- records to files ----------------------------------------------------------------------

    def _append(self, log: FolderLog, records: bytes | bytearray | memoryview) -> None:
        before = len(log.pending)
        log.pending += records
        self._pending_bytes += len(log.pending) - before
        if self._pending_bytes >= _FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        logs = (self._opened(), *self._below.values())
        # The names of new files are stored before one of them exists.
        begun = [log for log in logs if log.prepare()]
        if begun and self._context is not None:
            self._context.save(self._state())
        for log in logs:
            log.write()
            self._release(log)
        self._pending_bytes = 0

    def _release(self, log: FolderLog) -> None:
        """Close the file of a folder below the run's, when there are many of them."""
        if len(self._below) > _MAX_OPEN and log is not self._own:
            log.release()

    def _state(self) -> SinkState:
        """What is committed, and the names of files that were begun since then."""
        state = {**self._opened().state(), "skipped": self._skipped_committed}
        folders = {folder: log.state() for folder, log in self._below.items() if log.begun}
        if folders:
            state["folders"] = folders
        if self._series_committed:
            state["series"] = self._series_committed
        return state

    # --- folders -------------------------------------------------------------------------------

    def _log_below(self, folder: str) -> FolderLog:
        """The log of a folder below the run's, or of the run's own.

        Raises:
            ValueError: it cannot be the name of a folder, or there are too many.
        """
        name = safe_folder(folder)
        log = self._below.get(name) if name else self._opened()
        if log is None:
            if len(self._below) >= _MAX_FOLDERS:
                raise ValueError(f"over {_MAX_FOLDERS} folders below one run's")
            log = self._below[name] = self._log(name)
        return log

    def _log(self, folder: str) -> FolderLog:
        suffix = safe_suffix(_settings(self._context).get("suffix"))
        parts = (*self._parts(), *(folder.split("/") if folder else ()))
        return FolderLog(self._root(), parts, suffix, self._said, self._clock)

    def _root(self) -> Path:
        return Path(self._context.run.log_dir) if self._context else Path()

    def _parts(self) -> tuple[str, ...]:
        """The run's folder, below its log directory."""
        if self._context is None or _settings(self._context).get("folder") == ".":
            return ()
        return FOLDER, self._context.run_dir

    def _opened(self) -> FolderLog:
        if self._own is None:
            raise RuntimeError("the sink is not open: call open() first")
        return self._own

    def _said(self, sentence: str) -> None:
        if self._context is not None:
            self._context.log(sentence)


def _settings(context: SinkContext | None) -> Mapping[str, object]:
    return _mapping(context.run.tensorboard if context else None)


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _count(number: object) -> int:
    return number if isinstance(number, int) else 0

"""The W&B sink: one W&B run for each run, every step in it, readable whatever dies.

wandb-core, a process that the wandb library starts, takes the rows of history and writes them to a
``.wandb`` file, in every mode; online it uploads them as well, at a pace of its own. It keeps what
it has taken in memory for a while and says nothing about it, so a commit reads the file back: when
`commit` returns, every row is in the file, where neither this process's end nor wandb-core's can
take it. (The machine's can: wandb-core never calls fsync.)

A restarted worker gets everything after the last commit again. In an offline file, what the dead
one had written of it is cut off, so that each row is there once. Online it may have been uploaded,
and then is there twice. What was committed but not uploaded is logged again from the dead worker's
file: W&B says up to which row it has the run. Each start makes one more ``.wandb`` file, with the
same run id; ``wandb sync`` makes one run of them, in the order of their starts.

The step is an ordinary metric, ``global_step``, over which all others are drawn: W&B ignores rows
whose own step goes backwards.

wandb has global state, threads and exit hooks: a process opens one sink, once, and after an error
leaves by `os._exit`. wandb-core ends by itself within a tenth of a second of this process's death.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, cast

from sidestep.proto import Value

from ..rows.points import MixedBlock, Points, ScalarBlock
from . import wandb_alerts
from .base import SinkContext, SinkState
from .rendering.hparams import hparams_of
from .wandb_errors import UploadWatch, WandbError, without_key
from .wandb_file import NO_RECORDS, RecordReader, cut, is_awaited, rows_before
from .wandb_rows import Row, RowLog, key_of, log_table
from .wandb_run import FOLDER, core_is_alive, keeps_up, start_run
from .wandb_values import IGNORED, object_of

_BATCH_ROWS: Final = 256
"""Rows that are handed to wandb-core together."""

_STALL_S: Final = 15.0
"""How long the file may stay as it is while a commit waits for rows in it."""

_SUSPICIOUS_S: Final = 0.5
"""How long it may before wandb-core is looked for."""

_POLL_S: Final = 0.005

_MAX_COMPLAINTS: Final = 100

_FILE: Final = re.compile(rf"{FOLDER}/(offline-)?run-[^/\0]+/run-[^/\0]+\.wandb")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]+")


class WandbSink:
    """Writes one run's points to a W&B run.

    Its state is ``{"file": of the W&B run, from the log directory, "offset": bytes of it that are
    committed, "online": bool, "closed": bool, "skipped": values that it could not show}``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Make a sink that is not open yet.

        Args:
            clock: seconds, never going backwards.
        """
        self._clock = clock
        self._context: SinkContext | None = None
        self._run: Any = None
        self._log: RowLog | None = None
        self._reader: RecordReader | None = None
        self._rows: list[Row] = []  # not handed over yet; the last one may still grow
        self._missing = 0  # rows and alerts that were handed over, not seen in the file yet
        self._file = ""
        self._skipped = 0
        self._complaints: set[str] = set()
        self._uploads: UploadWatch | None = None

    @property
    def trouble(self) -> str | None:
        """Why W&B does not take what is in the run's file, if it does not."""
        return self._uploads.trouble if self._uploads else None

    def open(self, context: SinkContext) -> None:
        """Start the W&B run, or resume it and make good what a worker that died left undone.

        Raises:
            WandbError: W&B cannot start the run.
            OSError: the log directory cannot be written.
        """
        self._context = context
        state = context.state or {}
        skipped = state.get("skipped")
        self._skipped = skipped if isinstance(skipped, int) else 0
        left = self._left_by_the_dead(state)
        if left and not state.get("online"):
            _undo(*left)  # before anything else: the disk may be full
        self._run = start_run(context.run, context.log)
        if self._run is None:
            return
        import wandb

        self._uploads = UploadWatch(wandb, self._clock)
        self._uploads.listen_to_the_end(self._run, context.log)
        path = str(self._run.settings.sync_file)
        self._file = os.path.relpath(path, context.run.log_dir)
        self._reader = RecordReader(path) if keeps_up(self._run) else None
        self._log = RowLog(self._run)
        if left and state.get("online"):
            self._log_again(*left)
        context.save(self._state())

    def write(self, points: Iterable[Points]) -> None:
        """Take points and hand them to wandb-core. Values of one step share a row if they can.

        Raises:
            WandbError: wandb-core is gone.
            OSError: a file for an image or a text cannot be written.
        """
        if self._log is None:
            return
        for point in points:
            if isinstance(point, ScalarBlock):
                self._take_block(point)
            elif isinstance(point, MixedBlock):
                for block in point.alone():
                    self._take_block(block)
            else:
                self._take_value(point)
        self._hand_over()

    def commit(self) -> SinkState:
        """Wait until every row that was written can be read from the run's file.

        Raises:
            WandbError: wandb-core has stopped writing, or W&B has refused what was uploaded.
            OSError: the file is not there any more.
        """
        if self._reader is not None:
            self._await_rows(self._reader)
        self._see_that_all_is_taken()
        return self._state()

    def close(self, finished: bool) -> None:
        """Finish the W&B run: its file is complete then, and online everything is uploaded.

        A run that goes on (not `finished`) is resumed by the next `open`.

        Raises:
            WandbError: not everything could be uploaded. It is in the file; the next `open`, with
                the state of the last commit, sees to it.
        """
        if self._run is None or self._context is None:
            return
        run, self._run, self._log = self._run, None, None
        try:
            run.finish(exit_code=0)
        except Exception as error:  # noqa: BLE001  # wandb's, pydantic's, asyncio's, the system's
            raise WandbError(
                f"W&B did not take everything ({without_key(error)}); it is kept in "
                f"{Path(self._context.run.log_dir, self._file)}"
            ) from None
        self._see_that_all_is_taken()
        self._context.save({**self._state(), "closed": True})
        import wandb

        with contextlib.suppress(SystemExit):  # what it does when wandb-core ends in an error
            wandb.teardown()

    def _see_that_all_is_taken(self) -> None:
        # After a refusal wandb-core uploads nothing more and says so to nobody. Who opens the run
        # again sees up to where W&B has it.
        if self._uploads is not None and self._uploads.refused is not None:
            raise WandbError(self._uploads.refused)

    # --- the file ------------------------------------------------------------------------------

    def _state(self) -> SinkState:
        return {
            "file": self._file,
            "offset": None if self._reader is None else self._reader.offset,
            "online": not self._file.startswith(f"{FOLDER}/offline-"),
            "closed": self._log is None,
            "skipped": self._skipped,
        }

    def _await_rows(self, reader: RecordReader) -> None:
        waited_since = self._clock()
        while self._missing > 0:
            if records := reader.read():
                self._missing -= sum(is_awaited(record) for _, record in records)
                waited_since = self._clock()
                continue
            waited_s = self._clock() - waited_since
            if waited_s > _SUSPICIOUS_S and not core_is_alive():
                raise WandbError(f"wandb-core has died with {self._missing} rows")
            if waited_s > _STALL_S:
                raise WandbError(
                    f"wandb-core has written nothing to {self._file} for {_STALL_S:.0f} s, and "
                    f"{self._missing} rows are missing there; is the disk full?"
                )
            time.sleep(_POLL_S)

    def _left_by_the_dead(self, state: SinkState) -> tuple[Path, int] | None:
        """The file of a worker that died, and how much of it is committed."""
        file, offset = state.get("file"), state.get("offset")
        if state.get("closed") is not False or not isinstance(offset, int):
            return None
        if not isinstance(file, str) or not _FILE.fullmatch(file):
            return None
        path = Path(self._opened().run.log_dir, file)
        if path.is_file():
            return path, offset
        self._opened().log(f"W&B: {path} is gone, and what was not uploaded with it")
        return None

    def _log_again(self, path: Path, end: int) -> None:
        """Log what was committed to the file at `path` and is not at W&B."""
        if not self._state()["online"]:
            self._opened().log(
                f"W&B: the run is offline now; what was not uploaded before is in {path.parent}"
            )
            return
        for step, values in rows_before(str(path), end):
            if step >= self._run.starting_step:
                row = Row.logged(values)
                for shown in row.objects.values():
                    self._upload_again(path.parent / "files", shown)
                self._rows.append(row)
                self._hand_over(_BATCH_ROWS)
        self._hand_over()
        self.commit()

    def _upload_again(self, folder: Path, shown: object) -> None:
        for name in _files_of(shown):
            if (folder / name).is_file():
                self._run.save(str(folder / name), base_path=str(folder), policy="now")

    # --- points to rows ------------------------------------------------------------------------

    def _take_block(self, block: ScalarBlock) -> None:
        keys = [self._key(tag) for tag in block.tags]
        for start in range(0, len(block.steps), _BATCH_ROWS):
            part = slice(start, start + _BATCH_ROWS)
            columns = (block.steps[part].tolist(), block.times_ns[part].tolist())
            for step, time_ns, values in zip(*columns, block.values[part].tolist(), strict=True):
                self._row(step, time_ns, keys).numbers.update(zip(keys, values, strict=True))
            self._hand_over(_BATCH_ROWS)

    def _take_value(self, value: Value) -> None:
        if value.kind in IGNORED:
            return
        if value.kind == wandb_alerts.KIND:
            self._alert(value)
            return
        try:
            if value.kind == "hparams":
                self._take_hparams(value)
                return
            shown: Any = object_of(value)
        except ValueError as error:
            self._skipped += 1
            self._complain(f"W&B: a value of kind {value.kind!r:.80} is skipped: {error}")
            return
        key = self._key(value.tag)
        bound = self._bound(shown, value)
        self._row(value.step, value.time_ns, [key]).objects[key] = bound
        self._hand_over(_BATCH_ROWS)

    def _take_hparams(self, value: Value) -> None:
        """Hyperparameters into the run's one configuration, in which the last ones count.

        Raises:
            ValueError: they are none, or W&B does not take them.
        """
        try:
            said = hparams_of(value)
            self._run.config.update(dict(said.settings), allow_val_change=True)
        except Exception as error:
            raise ValueError(without_key(error)) from error
        # A row even without metrics: when it is in the file, the configuration is too.
        metrics = {self._key(name): number for name, number in said.metrics.items()}
        self._row(value.step, value.time_ns, metrics).numbers.update(metrics)
        self._hand_over(_BATCH_ROWS)

    def _bound(self, shown: Any, value: Value) -> object:
        """`shown` with its files in the run's folder."""
        # wandb would name the files after the tag, which may be no name for a file.
        name = _UNSAFE.sub("_", value.tag)[-100:]
        if isinstance(shown, list):
            most = getattr(shown[0], "MAX_ITEMS", len(shown))
            if len(shown) > most:
                self._complain(f"W&B shows {most} of the {len(shown)} images under {value.tag!r}")
            shown = shown[:most]
            for item in shown:
                item.bind_to_run(self._run, name, value.step)
            # What wandb makes of a list, which it would bind again, under the tag's own name.
            return type(shown[0]).seq_to_json(shown, self._run, name, value.step)
        if hasattr(shown, "bind_to_run"):
            log_table(self._run, shown, name)
            shown.bind_to_run(self._run, name, value.step)
        return shown

    def _alert(self, value: Value) -> None:
        self._hand_over()  # what led to it comes first
        try:
            wandb_alerts.alert(self._run, value)
        except Exception as error:
            raise WandbError(f"wandb-core takes no alert: {without_key(error)}") from error
        self._missing += 1

    def _row(self, step: int, time_ns: int, keys: Iterable[str]) -> Row:
        """The last row if values of `step` under `keys` can be in it, or else a new one."""
        if not self._rows or not self._rows[-1].takes(step, keys):
            self._rows.append(Row(step, time_ns / 1e9))
        self._rows[-1].time_s = time_ns / 1e9
        return self._rows[-1]

    def _hand_over(self, at_least: int = 0) -> None:
        """Log all rows; or, if `at_least` so many are complete, those."""
        count = len(self._rows) - (at_least > 0)
        if self._log is None or not self._rows or count < at_least:
            return
        try:
            for start in range(0, count, _BATCH_ROWS):
                self._log.write(self._rows[start : min(start + _BATCH_ROWS, count)])
        except Exception as error:
            raise WandbError(f"wandb-core takes no more rows: {without_key(error)}") from error
        self._missing += count
        del self._rows[:count]

    # --- said once -----------------------------------------------------------------------------

    def _key(self, tag: str) -> str:
        key = key_of(tag)
        if key != tag:
            self._complain(f"W&B keeps the name {tag!r} for itself: the tag is logged as {key!r}")
        return key

    def _complain(self, sentence: str) -> None:
        if sentence not in self._complaints and len(self._complaints) < _MAX_COMPLAINTS:
            self._complaints.add(sentence)
            self._opened().log(sentence)

    def _opened(self) -> SinkContext:
        if self._context is None:
            raise WandbError("the sink is not open")
        return self._context


def _files_of(shown: object) -> Iterator[str]:
    """Yield the files that a value which was logged names: its own, a list's, those of boxes."""
    if isinstance(shown, dict):
        for name, inside in cast("dict[str, object]", shown).items():
            if name in ("path", "filenames"):
                names = cast("list[object]", inside) if isinstance(inside, list) else [inside]
                yield from (name for name in names if isinstance(name, str))
            else:
                yield from _files_of(inside)
    elif isinstance(shown, list):
        for inside in cast("list[object]", shown):
            yield from _files_of(inside)


def _undo(path: Path, committed: int) -> None:
    """Take from an offline file what is not committed: it comes again."""
    if path.with_name(f"{path.name}.synced").exists():
        return
    if committed > NO_RECORDS:
        cut(str(path), committed)
    else:
        shutil.rmtree(path.parent)

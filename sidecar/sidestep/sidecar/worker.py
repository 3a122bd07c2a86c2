"""A worker: the process in which one sink of one run reads the journal and writes.

It is told what to do over the channel it inherits, and it ends at once when that channel does,
because then its daemon is dead. A failure of the sink closes it; after a pause that grows to 30 s
it is opened again from its cursor. Nothing that happens here can delay ingest or another sink.
"""

from __future__ import annotations

import os
import queue
import socket
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, cast

from sidestep.proto import RemoteProtocolError, RunSpec
from sidestep.proto.naming import safe_name

from .journal import check as journal_check
from .journal.reader import JournalReader, Row, unpack_spec
from .rows.points import Points, read_points
from .service.terminal import leave_signals_to_the_daemon, make_printing_harmless
from .sinks.base import Sink, SinkContext, SinkUnusableError
from .supervision import cursor_file
from .supervision.channel import Channel, ChannelClosedError
from .supervision.cursor_file import Cursor
from .supervision.processes import end_descendants
from .supervision.wanted import FORWARD, MIRROR, OTLP, WEBHOOK

_BACKOFF_FIRST_S: Final = 0.25
_BACKOFF_LAST_S: Final = 30.0
_POLL_S: Final = 1.0
"""A notification can be missed (a row of another daemon's time); the journal is asked anyway."""


def open_sink(name: str) -> Sink:
    """The sink called `name`; its module is imported only here.

    Raises:
        ModuleNotFoundError: a package that it needs is missing.
    """
    if name == "tensorboard":
        from .sinks.tensorboard import TensorBoardSink

        return TensorBoardSink()
    if name == "wandb":
        from .sinks.wandb import WandbSink

        return WandbSink()
    if name == "archive":
        from .sinks.archive import ArchiveSink

        return ArchiveSink()
    if name == OTLP:
        from .sinks.otlp import OtlpSink

        return OtlpSink()
    raise ValueError(f"unknown sink {name!r}")


_ONE_PER_PROCESS: Final = frozenset({"wandb"})
"""Sinks whose library has global state: after a failure only a new process can open them again."""

_ANY_ORDER: Final = frozenset({"tensorboard", "archive"})
"""Sinks that do not care which of two tags comes first; W&B's rows are of one step each."""

# W&B's commit is a round trip to its own service; TensorBoard's is one write.
_INTERVAL_S: Final = {"tensorboard": 0.05, "wandb": 0.5, "archive": 0.1, OTLP: 1.0}


class Worker:
    """Reads rows of one run after the cursor, hands them to the sink, commits, stores the cursor.

    Args:
        sink_name: which sink.
        run_id: the journal's id of the run.
        run: the run's description.
        journal_path: the database.
        cursor_path: the cursor's file.
        report: called with what the daemon should know.
        make_sink: makes the sink, anew after each failure.
        settings: what the daemon's settings say of the sink.
    """

    def __init__(
        self,
        sink_name: str,
        run_id: int,
        run: RunSpec,
        journal_path: str,
        cursor_path: str,
        report: Callable[[dict[str, Any]], None],
        make_sink: Callable[[str], Sink] = open_sink,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._name = sink_name
        self._run_id = run_id
        self._run = run
        self._cursor_path = cursor_path
        self._report = report
        self._make_sink = make_sink
        self._settings = settings or {}
        self._journal_path = journal_path
        self._cursor = Cursor()
        self._sink: Sink | None = None
        self._skipped = 0
        self._journal_damage: str | None = None
        self._trouble: str | None = None

    def serve(self, inbox: queue.SimpleQueue[dict[str, Any]]) -> bool:
        """Work until the daemon says ``close``; False when only a new process can go on."""
        failures = 0
        self._reader = JournalReader(self._journal_path)
        self._cursor = cursor_file.load(self._cursor_path, self._reader.identity())
        self._say("starting")
        while True:
            closing: dict[str, Any] | None = None
            try:
                closing = self._until_closed(inbox)
                self._close(bool(closing.get("finished")))
                return True
            except (SinkUnusableError, ModuleNotFoundError) as error:
                self._say("failed", _sentence(error))
                return True
            except Exception as error:  # noqa: BLE001 - whatever a sink's library raises
                failures = failures + 1 if self._sink is None else 1
                pause = min(_BACKOFF_LAST_S, _BACKOFF_FIRST_S * 2 ** min(failures, 16))
                traceback.print_exc()
                if isinstance(error, sqlite3.Error) and journal_check.is_corrupt(error):
                    self._journal_damage = str(error)  # no other worker can read it either
                self._say("degraded", f"{type(error).__name__}: {error}", pause)
                if self._name in _ONE_PER_PROCESS:
                    return False
                self._abandon()
                if closing is not None or _wait_for_close(inbox, pause):
                    return True

    def _until_closed(self, inbox: queue.SimpleQueue[dict[str, Any]]) -> dict[str, Any]:
        self._open()
        closing: dict[str, Any] | None = None
        while True:
            started = time.monotonic()
            while self._copy_some():
                pass
            self._look_behind()
            if closing is not None:
                return closing
            # Gather what comes in a short while into one commit.
            pause = _INTERVAL_S.get(self._name, 0.05) - (time.monotonic() - started)
            closing = _next_news(inbox, max(0.0, pause))

    def _open(self) -> None:
        sink = self._make_sink(self._name)
        sink.open(
            SinkContext(
                self._run,
                safe_name(self._run.name),
                self._cursor.state,
                self._save_state,
                lambda text: print(f"{self._name} of run {self._run.name!r}: {text}", flush=True),
                self._settings,
            )
        )
        self._sink = sink
        self._say("ok")

    def _copy_some(self) -> bool:
        """Write the next rows; whether there were any."""
        rows = self._reader.rows(self._cursor.row, self._run_id)
        if not rows:
            return False
        assert self._sink is not None
        # What is missing before them has left the journal: it was dropped (see `backlog_cap`).
        gone = max(0, rows[0].total - rows[0].records - self._cursor.total)
        for row in rows:
            self._sink.write(self._points(row))
        state = self._sink.commit()
        self._store(
            replace(
                self._cursor,
                row=rows[-1].id,
                total=rows[-1].total,
                state=state,
                dropped=self._cursor.dropped + gone,
            )
        )
        self._say("ok")
        return True

    def _look_behind(self) -> None:
        """Say it when what is behind the sink begins or ceases to take what the sink keeps."""
        trouble: str | None = getattr(self._sink, "trouble", None)
        if trouble != self._trouble:
            self._trouble = trouble
            self._say("ok")

    def _points(self, row: Row) -> list[Points]:
        """A row's points; one that cannot be read is counted, and delays nobody."""
        if row.damaged:
            self._skipped += row.records
            print(f"journal row {row.id} is damaged: {row.records} records", flush=True)
            return []
        for refresh in (False, True):
            try:
                tag_sets = self._reader.tag_sets(row.client_id, refresh)
                # A row's bounds are the journal's: who writes it again sorts it the same way.
                return list(read_points(row.data, tag_sets, any_order=self._name in _ANY_ORDER))
            except RemoteProtocolError as error:
                if refresh:
                    self._skipped += row.records
                    print(f"journal row {row.id} cannot be read: {error}", flush=True)
        return []

    def _save_state(self, state: Any) -> None:
        self._store(replace(self._cursor, state=state))

    def _store(self, cursor: Cursor) -> None:
        # What is not on the disk is not so: rows would leave the journal that are needed again.
        cursor_file.store(self._cursor_path, cursor)
        self._cursor = cursor

    def _close(self, finished: bool) -> None:
        if self._sink is not None:
            self._sink.close(finished)
            self._sink = None
        self._say("closed")

    def _abandon(self) -> None:
        """After a failure: let go of the sink, whatever state it is in."""
        sink, self._sink = self._sink, None
        if sink is not None:
            try:
                sink.close(False)
            except Exception:  # noqa: BLE001 - it has failed already
                traceback.print_exc()

    def _say(self, state: str, error: str | None = None, pause_s: float = 0.0) -> None:
        self._report(
            {
                "state": state,
                "row": self._cursor.row,
                "total": self._cursor.total,
                "dropped": self._cursor.dropped,
                "error": error,
                "skipped": self._skipped + _skipped_of(self._cursor),
                "retry_in_s": pause_s,
                "trouble": self._trouble,
                "journal_damage": self._journal_damage,
            }
        )


def _skipped_of(cursor: Cursor) -> int:
    """Values that the sink could not show, by its own count."""
    skipped = (cursor.state or {}).get("skipped")
    return skipped if isinstance(skipped, int) else 0


def _sentence(error: Exception) -> str:
    """What is wrong, and for a missing package what installs it."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error}. Run: pip install 'sidestep[sidecar]'"
    return str(error)


def _next_news(inbox: queue.SimpleQueue[dict[str, Any]], pause_s: float) -> dict[str, Any] | None:
    """Wait for news of rows, then `pause_s` more for further ones; the request to close, if any."""
    news: dict[str, Any] | None = None
    try:
        news = inbox.get(timeout=_POLL_S)
        deadline = time.monotonic() + pause_s
        while news.get("op") != "close":
            news = inbox.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        pass
    return news if news is not None and news.get("op") == "close" else None


def _wait_for_close(inbox: queue.SimpleQueue[dict[str, Any]], pause_s: float) -> bool:
    """Wait out a pause; True when the daemon says ``close`` in it."""
    deadline = time.monotonic() + pause_s
    while (left := deadline - time.monotonic()) > 0:
        try:
            if inbox.get(timeout=left).get("op") == "close":
                return True
        except queue.Empty:
            break
    return False


def _listen(channel: Channel, inbox: queue.SimpleQueue[dict[str, Any]]) -> None:
    try:
        while True:
            for message in channel.receive():
                inbox.put(message)
    except ChannelClosedError:
        # The daemon is dead. Whatever the sink is doing, the next worker does it again.
        os._exit(0)


def main() -> None:
    """Run as a process: ``python -m sidestep.sidecar.worker SINK FD``."""
    leave_signals_to_the_daemon()
    make_printing_harmless()
    channel = Channel(socket.socket(fileno=int(sys.argv[-1])))
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(channel, inbox), name="channel", daemon=True).start()
    task = inbox.get()
    if task.get("op") == "close":
        return
    os.umask(int(task["umask"]))

    def report(message: dict[str, Any]) -> None:
        try:
            channel.send(message)
        except ChannelClosedError:
            os._exit(0)

    if task["sink"] == FORWARD:
        from .forwarding.worker import ForwardWorker

        paths = str(task["journal"]), str(task["cursor"])
        if not ForwardWorker(task["settings"], int(task["run_id"]), *paths, report).serve(inbox):
            os._exit(1)
        return
    if task["sink"] == MIRROR:
        from .mirror.worker import MirrorWorker

        journal = JournalReader(str(task["journal"])).identity()
        run = unpack_spec(cast("bytes", task["spec"]))
        MirrorWorker(task["settings"], run, str(task["cursor"]), journal, report).serve(inbox)
        return
    if task["sink"] == WEBHOOK:
        from .webhook.worker import WebhookWorker

        run, run_id = unpack_spec(cast("bytes", task["spec"])), int(task["run_id"])
        journal_path, cursor_path = str(task["journal"]), str(task["cursor"])
        hook = WebhookWorker(task["settings"], run_id, run, journal_path, cursor_path, report)
        if not hook.serve(inbox):
            os._exit(1)  # without waiting for a post that never ends
        return
    worker = Worker(
        str(task["sink"]),
        int(task["run_id"]),
        unpack_spec(cast("bytes", task["spec"])),
        str(task["journal"]),
        str(task["cursor"]),
        report,
        settings=task["settings"],
    )
    if not worker.serve(inbox):
        # Without exit hooks: they belong to the library that has just failed, as do its processes.
        end_descendants(os.getpid())
        os._exit(1)


if __name__ == "__main__":
    main()

"""The mirror of one run as a worker: what its sinks have written is copied, and then it says so.

It reads no rows. Where it stands is where the run's other file sinks stood, by their own cursors,
before a pass that left nothing for later: whatever is lost with this machine after that, those
records are in the object storage. It holds no rows in the journal either, since the files have
them. What it has copied it does not write down: a new process copies everything once more.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from sidestep.proto import RunSpec
from sidestep.proto.naming import safe_name

from ..sinks.archive_format import FOLDER as ARCHIVE
from ..supervision import cursor_file
from ..supervision.cursor_file import Cursor
from .copies import FileSystem, Folder, Mirror

_TENSORBOARD: Final = "tensorboard"
_WITH_FOLDERS: Final = frozenset({"file", "local", "ftp", "sftp", "ssh", "smb", "webhdfs", "hdfs"})
_POLL_S: Final = 1.0
_SLOWEST: Final = 1_000_000
"""Bytes a second. The libraries say nothing while they copy a file; for so long as it may take at
this pace, this process says that it is alive, and is not taken for one that hangs."""

_BACKOFF_LAST_S: Final = 30.0
_HOPE_S: Final = 60.0
"""A storage that is away for so long is waited for by nobody; it is tried all the same."""


class MirrorUnusableError(Exception):
    """Nothing can be copied before a person has changed something; says what."""


class MirrorWorker:
    """Copies until it is told to close.

    Args:
        settings: ``url``, ``interval_s`` and ``file_sinks``: see `wanted`.
        run: the run's description.
        cursor_path: the cursor's file; those of the other sinks lie beside it.
        journal: the journal's identity.
        report: called with what the daemon should know.
        open_url: finds the file system and the root in it.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        run: RunSpec,
        cursor_path: str,
        journal: int,
        report: Callable[[dict[str, Any]], None],
        open_url: Callable[[str], tuple[FileSystem, str]] | None = None,
    ) -> None:
        self._url = str(settings["url"])
        self._interval_s = float(settings["interval_s"])
        self._sinks = cast("list[str]", settings["file_sinks"])
        self._run = run
        self._cursor_path = cursor_path
        self._journal = journal
        self._report = report
        self._open_url = open_url or _open_url
        self._cursor = cursor_file.load(cursor_path, journal)
        self._mirror: Mirror | None = None
        self._saying = threading.Lock()
        self._patience_until = 0.0

    def serve(self, inbox: queue.SimpleQueue[dict[str, Any]]) -> None:
        """Copy what changes; returns when it was told to close and everything is copied."""
        failures, failing_since = 0, 0.0
        self._say("starting")
        threading.Thread(target=self._say_alive, name="alive", daemon=True).start()
        closing = hurried = False
        while True:
            pause_s = _POLL_S
            try:
                self._pass(all_now=closing or hurried)
                failures, hurried = 0, False
            except MirrorUnusableError as error:
                self._say("failed", str(error))
                return
            except Exception as error:  # noqa: BLE001 - whatever a storage's library raises
                failing_since = failing_since if failures else time.monotonic()
                failures += 1
                pause_s = min(_BACKOFF_LAST_S, _POLL_S * 2 ** min(failures - 1, 8))
                traceback.print_exc()
                self._mirror = None  # with its connections
                said = f"{self._place()}: {_sentence(error)}"
                if time.monotonic() - failing_since >= _HOPE_S:
                    self._say("failed", said)
                    return
                self._say("degraded", said, pause_s)
            if closing:
                if not failures:
                    self._say("closed")
                return
            closing, hurry = _news(inbox, pause_s, hurried=failures > 0)
            hurried = hurried or hurry

    def _pass(self, *, all_now: bool) -> None:
        cursors = self._others()
        if self._mirror is None:
            file_system, root = self._open_url(self._url)
            scheme = urlsplit(self._url).scheme or "file"
            self._mirror = Mirror(
                file_system, root, self._interval_s, folders=scheme in _WITH_FOLDERS
            )
        complete = self._mirror.copy(
            folders_of(self._run, cursors), all_now=all_now, before_each=self._begin_file
        )
        if complete:
            stands = min(cursors.values(), key=lambda cursor: cursor.row)
            if (stands.row, stands.total) != (self._cursor.row, self._cursor.total):
                cursor = replace(self._cursor, row=stands.row, total=stands.total)
                cursor_file.store(self._cursor_path, cursor)
                self._cursor = cursor
        self._say("ok")

    def _begin_file(self, size: int) -> None:
        self._say("starting")  # what was wrong is wrong until this has worked
        self._patience_until = time.monotonic() + size / _SLOWEST

    def _say_alive(self) -> None:
        while True:
            time.sleep(_POLL_S)
            with self._saying:
                if time.monotonic() < self._patience_until:
                    self._report(self._message("starting"))

    def _others(self) -> dict[str, Cursor]:
        """Where the sinks stand whose files are copied."""
        folder = os.path.dirname(self._cursor_path)
        run = self._run
        names = {sink: cursor_file.file_name(run.name, run.log_dir, sink) for sink in self._sinks}
        return {
            sink: cursor_file.load(os.path.join(folder, name), self._journal)
            for sink, name in names.items()
        }

    def _place(self) -> str:
        """The address without what may be a secret in it."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def _say(self, state: str, error: str | None = None, pause_s: float = 0.0) -> None:
        with self._saying:
            self._patience_until = 0.0
            self._report(self._message(state, error, pause_s))

    def _message(
        self, state: str, error: str | None = None, pause_s: float = 0.0
    ) -> dict[str, Any]:
        return {
            "state": state,
            "row": self._cursor.row,
            "total": self._cursor.total,
            "dropped": 0,
            "error": error,
            "skipped": 0,
            "retry_in_s": pause_s,
            "trouble": None,
            "journal_damage": None,
        }


def folders_of(run: RunSpec, cursors: Mapping[str, Cursor]) -> list[Folder]:
    """What belongs to a run. The mirror has ``tensorboard/RUN`` and ``scalars/RUN``.

    A run whose event files lie in the log directory itself shares it with whatever else is there:
    of that the event files are taken, and the folders that the run's sink has begun.
    """
    root, name = Path(run.log_dir), safe_name(run.name)
    shown = f"{_TENSORBOARD}/{name}"
    found = [Folder(root / ARCHIVE / name, f"{ARCHIVE}/{name}")]
    settings = run.tensorboard
    if not isinstance(settings, Mapping) or settings.get("folder") != ".":
        return [*found, Folder(root / _TENSORBOARD / name, shown)]
    found.append(Folder(root, shown, below=False))
    state = cursors[_TENSORBOARD].state if _TENSORBOARD in cursors else None
    begun = (state or {}).get("folders")
    names = sorted(cast("Mapping[str, object]", begun)) if isinstance(begun, Mapping) else []
    return [*found, *(Folder(root / n, f"{shown}/{n}", below=False) for n in names)]


def _open_url(url: str) -> tuple[FileSystem, str]:
    try:
        from fsspec.core import url_to_fs
    except ModuleNotFoundError:
        raise MirrorUnusableError(
            "copying to object storage needs fsspec. Run: pip install 'sidestep[mirror]', and the "
            "storage's own package: s3fs for s3://, gcsfs for gs://, adlfs for az://"
        ) from None
    try:
        file_system, root = cast("tuple[FileSystem, str]", url_to_fs(url))
    except (ImportError, ValueError) as error:  # fsspec says which package, or that it knows none
        raise MirrorUnusableError(f"mirror: {error}") from None
    return file_system, root


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]


def _news(
    inbox: queue.SimpleQueue[dict[str, Any]], pause_s: float, *, hurried: bool
) -> tuple[bool, bool]:
    """Wait a while: whether to close now, and whether somebody waits for everything.

    Args:
        inbox: what the daemon says.
        pause_s: how long.
        hurried: whether it is a pause after a failure, which nothing but closing ends.
    """
    deadline = time.monotonic() + pause_s
    hurry = False
    while True:
        try:
            message = inbox.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return False, hurry
        if message.get("op") == "close":
            return True, hurry
        if message.get("op") == "hurry":
            hurry = True
            if not hurried:
                deadline = 0.0  # what came with it is heard, too

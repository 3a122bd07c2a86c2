"""The exposition's process: follows the journal, asks the daemon how it is, answers scrapers.

It is told its task over the channel it inherits, and ends at once when that does, because then its
daemon is dead. What it has from the daemon it asks for, once a second and one question at a time:
a daemon that is busy answers later, and is `daemon_responding 0` meanwhile. The journal it reads
with an end of its own, at low priority. So nothing here can delay ingest or the main loop.
"""

from __future__ import annotations

import os
import queue
import socket
import sqlite3
import sys
import threading
import time
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ..journal.reader import JournalReader
from ..service.terminal import leave_signals_to_the_daemon, make_printing_harmless
from ..supervision.channel import Channel, ChannelClosedError
from . import address
from .families import Own, families
from .last_values import LastValues
from .server import Cached, Server

_ROUND_S: Final = 1.0
_SILENT_S: Final = 5.0
"""A daemon that has not answered for so long is said not to respond."""

_LISTEN_AGAIN_S: Final = 10.0
_NICE: Final = 10


class Exposition(Collector):
    """What is exposed; `status`, `read` and `own` by one thread, `collect` by any.

    Args:
        journal_path: the database.
        max_series: values of runs that are exposed.
        say: says something to the daemon's log.
    """

    def __init__(self, journal_path: str, max_series: int, say: Any) -> None:
        self._journal_path = journal_path
        self._lock = threading.Lock()
        self._reader: JournalReader | None = None
        self._status: dict[str, Any] | None = None
        self._status_at = -_SILENT_S
        self._errors = 0
        self._values = LastValues(
            max_series,
            lambda: say(
                f"prometheus: more than {max_series} values (prometheus_max_series); further tags "
                "are not exposed, and counted in sidestep_series_left_out"
            ),
        )
        self.server: Server | None = None

    def status(self, message: dict[str, Any]) -> None:
        """Take what the daemon says of itself, and the rows that were there when it said so."""
        with self._lock:
            self._status, self._status_at = message, time.monotonic()
            self._values.keep([int(run["id"]) for run in message["runs"]])
        try:
            if self._reader is None:
                self._reader = JournalReader(self._journal_path)
            while self._read_some(self._reader, int(message["daemon"]["rows"])):
                pass
        except sqlite3.Error:
            self._errors += 1
            reader, self._reader = self._reader, None
            if reader is not None:
                reader.close()

    def _read_some(self, reader: JournalReader, until: int) -> bool:
        with self._lock:
            return self._values.read(reader, until)

    def collect(self) -> Any:
        """The families, for prometheus-client."""
        with self._lock:
            own = Own(
                responding=time.monotonic() - self._status_at < _SILENT_S,
                journal_bytes=_size(self._journal_path),
                series=self._values.series,
                left_out=self._values.left_out,
                skipped=self._values.skipped,
                errors=self._errors,
                refused=self.server.refused if self.server else 0,
            )
            return list(families(self._status, self._values.runs, own))

    def render(self, accept: str) -> tuple[str, bytes]:
        """The text in the format that `accept` asks for."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        encoder, content_type = choose_encoder(accept)
        return content_type, encoder(registry)

    def describe(self) -> Any:
        """Nothing beforehand: what there is depends on the runs."""
        return []


def _size(journal_path: str) -> int | None:
    total = None
    for path in (journal_path, f"{journal_path}-wal"):
        try:
            total = (total or 0) + os.stat(path).st_size
        except OSError:
            continue
    return total


class _Listening:
    """The server, as soon as its address is free."""

    def __init__(self, task: dict[str, Any], exposition: Exposition, channel: Channel) -> None:
        self._host, self._port = address.parse(str(task["address"]))
        self._token = task["token"]
        self._exposition = exposition
        self._channel = channel
        self._next = 0.0

    def tick(self) -> None:
        """Listen, or try to; look after the connections."""
        server = self._exposition.server
        if server is not None:
            server.sweep()
            return
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LISTEN_AGAIN_S
        render = Cached(self._exposition.render)
        try:
            server = Server(self._host, self._port, render, self._token)
        except OSError as error:
            problem = f"{error.strerror or error} ({self._host}:{self._port})"
            self._channel.send({"op": "listening", "url": None, "error": problem})
            return
        threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
        self._exposition.server = server
        url = address.url(self._host, server.port)
        self._channel.send({"op": "listening", "url": url, "error": None})


def _hear(channel: Channel, inbox: queue.SimpleQueue[dict[str, Any]]) -> None:
    try:
        while True:
            for message in channel.receive():
                inbox.put(message)
    except ChannelClosedError:
        os._exit(0)  # the daemon is dead


def _serve(channel: Channel, inbox: queue.SimpleQueue[dict[str, Any]]) -> None:
    task = inbox.get()

    def say(text: str) -> None:
        channel.send({"op": "say", "text": text})

    exposition = Exposition(str(task["journal"]), int(task["max_series"]), say)
    listening = _Listening(task, exposition, channel)
    asked = False
    while True:
        due = time.monotonic() + _ROUND_S
        if not asked:
            channel.send({"op": "ask"})
            asked = True
        while (left := due - time.monotonic()) > 0:
            listening.tick()
            try:
                exposition.status(inbox.get(timeout=left))
                asked = False
            except queue.Empty:
                break


def main() -> None:
    """Run as a process: ``python -m sidestep.sidecar.exposition.worker FD``."""
    leave_signals_to_the_daemon()
    make_printing_harmless()
    os.nice(_NICE)
    channel = Channel(socket.socket(fileno=int(sys.argv[-1])))
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_hear, args=(channel, inbox), name="channel", daemon=True).start()
    try:
        _serve(channel, inbox)
    except ChannelClosedError:
        os._exit(0)


if __name__ == "__main__":
    main()

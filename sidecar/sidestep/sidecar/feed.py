"""Publishes numbers as they are journalled, for `tail`: one thread, nothing when nobody listens.

It reads the journal like everybody else. A subscriber that does not read loses messages and delays
nobody; when this thread itself falls behind it skips to what is new. Either way a subscriber can
tell how many records it missed: each message says how many its run had, up to and with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, cast

import msgpack
import zmq

from sidestep.proto import RemoteProtocolError

from .journal_reader import JournalReader, Row

STATUS_TOPIC: Final = b"\0status"
_INTERVAL_S: Final = 0.02
_STATUS_S: Final = 1.0
_MAX_BEHIND_ROWS: Final = 2000


class Feed(threading.Thread):
    """The thread.

    Args:
        context: ZeroMQ context of the daemon.
        endpoint: where subscribers connect.
        journal_path: what to read.
        daemon_id: said in every message, so that a subscriber notices a restart.
        status: the status object, published once a second.
        run_names: names of the runs by their ids.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        journal_path: str,
        daemon_id: int,
        status: Callable[[], dict[str, Any]],
        run_names: Callable[[], dict[int, str]],
    ) -> None:
        super().__init__(name="feed", daemon=True)
        self._context = context
        self._endpoint = endpoint
        self._journal_path = journal_path
        self._daemon_id = daemon_id
        self._status = status
        self._run_names = run_names
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._newest = 0
        self._topics: dict[bytes, int] = {}

    def rows(self, newest: int) -> None:
        """There are rows up to `newest`."""
        self._newest = newest
        self._news.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._news.set()

    def run(self) -> None:
        """Publish until stopped."""
        # XPUB tells of subscriptions: without any, nothing needs to be read.
        socket = self._context.socket(zmq.XPUB)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        # By count, and a message may have a megabyte: this bounds a `tail` that does not read.
        socket.setsockopt(zmq.SNDHWM, 128)
        socket.bind(self._endpoint)
        reader = JournalReader(self._journal_path)
        done, next_status = self._newest, 0.0
        try:
            while not self._stopping.is_set():
                self._news.wait(0.2)
                self._news.clear()
                self._subscriptions(socket)
                if self._topics:
                    done = self._publish(socket, reader, done)
                    if time.monotonic() >= next_status:
                        next_status = time.monotonic() + _STATUS_S
                        message = {
                            "status": self._status(),
                            "totals": self._totals(reader, done),
                        }
                        socket.send_multipart([STATUS_TOPIC, _pack(message)])
                    self._stopping.wait(_INTERVAL_S)
                else:
                    done = self._newest
        finally:
            reader.close()
            socket.close(linger=0)

    def _subscriptions(self, socket: zmq.Socket[bytes]) -> None:
        while socket.poll(0):
            data = socket.recv()
            topic = data[1:]
            count = self._topics.get(topic, 0) + (1 if data[:1] == b"\1" else -1)
            if count > 0:
                self._topics[topic] = count
            else:
                self._topics.pop(topic, None)

    def _publish(self, socket: zmq.Socket[bytes], reader: JournalReader, done: int) -> int:
        if self._newest - done > _MAX_BEHIND_ROWS:
            done = self._newest - _MAX_BEHIND_ROWS
        names = self._run_names()
        for row in reader.rows(done):
            done = row.id
            run_id = reader.run_of_client(row.client_id)
            run = names.get(run_id, "")
            topic = run.encode() + b"\0"
            if not any(topic.startswith(wanted) for wanted in self._topics):
                continue
            message = {
                "run": run,
                "row": row.id,
                "run_id": run_id,
                "records": row.records,
                "total": row.total,
                "daemon_id": self._daemon_id,
                "scalars": [list(block) for block in scalar_rows(reader, row)],
            }
            socket.send_multipart([topic, _pack(message)])
        return done

    def _totals(self, reader: JournalReader, done: int) -> list[tuple[int, str, int]]:
        """Run by run, its id, its name, and its records in what was published or skipped so far."""
        return [
            (run_id, name, reader.total(run_id, done))
            for run_id, name in self._run_names().items()
            if any((name.encode() + b"\0").startswith(wanted) for wanted in self._topics)
        ]


def scalar_rows(reader: JournalReader, row: Row) -> list[tuple[list[str], list[int], Any, Any]]:
    """The numbers of a row as plain lists: tags, steps, wall times in seconds, rows of values."""
    from .points import ScalarBlock, read_points, wall_times_s  # brings numpy

    for refresh in (False, True):
        try:
            blocks = list(read_points(row.data, reader.tag_sets(row.client_id, refresh)))
            break
        except RemoteProtocolError:
            blocks = []
    return [
        (list(b.tags), b.steps.tolist(), wall_times_s(b.times_ns).tolist(), b.values.tolist())
        for b in blocks
        if isinstance(b, ScalarBlock)
    ]


def _pack(message: dict[str, Any]) -> bytes:
    return cast("bytes", msgpack.packb(message))

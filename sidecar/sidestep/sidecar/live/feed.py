"""Publishes numbers as they are journalled, for `tail`: one thread, nothing when nobody listens.

It reads the journal like everybody else. A subscriber that does not read loses messages and delays
nobody; when this thread itself falls behind it skips to what is new. Either way a subscriber can
tell how many records it missed: each message says how many its run had, up to and with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

import msgpack

from sidestep.proto import RemoteProtocolError

from ..journal.reader import JournalReader, Row
from ..peers.door import Door

STATUS_TOPIC: Final = b"\0status"
_INTERVAL_S: Final = 0.02
_STATUS_S: Final = 1.0
_MAX_BEHIND_ROWS: Final = 2000
_RETRY_FIRST_S: Final = 0.25
_RETRY_LAST_S: Final = 5.0
_SUBSCRIPTIONS: Final = 1000
"""Of one subscriber."""


class Feed(threading.Thread):
    """The thread.

    Args:
        open_door: opens the door for subscribers; called in this thread.
        journal_path: what to read.
        daemon_id: said in every message, so that a subscriber notices a restart.
        status: the status object, published once a second.
        run_names: names of the runs by their ids.
        log: says something to the daemon's log.
    """

    def __init__(
        self,
        open_door: Callable[[], Door],
        journal_path: str,
        daemon_id: int,
        status: Callable[[], dict[str, Any]],
        run_names: Callable[[], dict[int, str]],
        log: Callable[[str], None] = print,
    ) -> None:
        super().__init__(name="feed", daemon=True)
        self._open_door = open_door
        self._journal_path = journal_path
        self._daemon_id = daemon_id
        self._status = status
        self._run_names = run_names
        self._news = threading.Event()
        self._stopping = threading.Event()
        self._newest = 0
        self._wanted: dict[bytes, set[bytes]] = {}  # topics by subscriber
        self._log = log
        self._door: Door | None = None
        self._reader: JournalReader | None = None
        self._done = 0  # rows up to here are published, or skipped
        self._next_status = self._retry_at = 0.0
        self._pause_s = _RETRY_FIRST_S

    def rows(self, newest: int) -> None:
        """There are rows up to `newest`."""
        self._newest = newest
        self._news.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._news.set()

    def run(self) -> None:
        """Publish until stopped. What goes wrong is tried again: nobody else would do it."""
        self._done = self._newest
        try:
            while not self._stopping.is_set():
                try:
                    self._round()
                except Exception as error:  # noqa: BLE001 - whatever it is, others shall listen on
                    self._put_off(error)
        finally:
            if self._reader is not None:
                self._reader.close()
            if self._door is not None:
                self._door.close()

    def _round(self) -> None:
        if self._door is None:
            self._door = self._open_door()
        door = self._door
        self._news.wait(_INTERVAL_S if door.unsent else 0.2)
        self._news.clear()
        self._subscriptions(door)
        if not self._wanted:  # nothing needs to be read
            self._done = self._newest
            return
        if time.monotonic() >= self._retry_at:
            if self._reader is None:
                self._reader = JournalReader(self._journal_path)
            self._publish(door, self._reader)
            if time.monotonic() >= self._next_status:
                self._next_status = time.monotonic() + _STATUS_S
                totals = self._totals(self._reader, self._done)
                self._send(door, STATUS_TOPIC, _pack({"status": self._status(), "totals": totals}))
            self._pause_s = _RETRY_FIRST_S
        self._stopping.wait(_INTERVAL_S)

    def _put_off(self, error: Exception) -> None:
        """Not at once again; who asks to listen meanwhile is heard."""
        if self._pause_s == _RETRY_FIRST_S:  # else it has been said
            self._log(f"the feed for tail is interrupted: {type(error).__name__}: {error}")
        self._retry_at = time.monotonic() + self._pause_s
        self._stopping.wait(self._pause_s if self._door is None else _INTERVAL_S)
        self._pause_s = min(2 * self._pause_s, _RETRY_LAST_S)
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _subscriptions(self, door: Door) -> None:
        for identity, (data,) in door.receive(_SUBSCRIPTIONS, _SUBSCRIPTIONS * 1024):
            topics = self._wanted.setdefault(identity, set())
            if data[:1] == b"\1" and len(topics) < _SUBSCRIPTIONS:
                topics.add(data[1:])
                door.admit(identity)
            elif data[:1] == b"\0":
                topics.discard(data[1:])
        for identity in [one for one in self._wanted if one not in door]:
            del self._wanted[identity]

    def _is_wanted(self, topic: bytes) -> bool:
        return any(_matches(topic, topics) for topics in self._wanted.values())

    def _send(self, door: Door, topic: bytes, payload: bytes) -> None:
        for identity, topics in self._wanted.items():
            if _matches(topic, topics):
                door.send(identity, [topic, payload])

    def _publish(self, door: Door, reader: JournalReader) -> None:
        self._done = max(self._done, self._newest - _MAX_BEHIND_ROWS)
        names = self._run_names()
        for row in reader.rows(self._done):
            run_id = reader.run_of_client(row.client_id)
            run = names.get(run_id, "")
            topic = run.encode() + b"\0"
            if not self._is_wanted(topic):
                self._done = row.id
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
            self._done = row.id  # before it goes out: what is sent twice counts twice
            self._send(door, topic, _pack(message))

    def _totals(self, reader: JournalReader, done: int) -> list[tuple[int, str, int]]:
        """Run by run, its id, its name, and its records in what was published or skipped so far."""
        return [
            (run_id, name, reader.total(run_id, done))
            for run_id, name in self._run_names().items()
            if self._is_wanted(name.encode() + b"\0")
        ]


def _matches(topic: bytes, prefixes: Iterable[bytes]) -> bool:
    return any(topic.startswith(prefix) for prefix in prefixes)


def scalar_rows(reader: JournalReader, row: Row) -> list[tuple[list[str], list[int], Any, Any]]:
    """The numbers of a row as plain lists: tags, steps, wall times in seconds, rows of values."""
    from ..rows.points import ScalarBlock, read_points, wall_times_s

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

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

from .door import Door
from .journal_reader import JournalReader, Row

STATUS_TOPIC: Final = b"\0status"
_INTERVAL_S: Final = 0.02
_STATUS_S: Final = 1.0
_MAX_BEHIND_ROWS: Final = 2000
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
    """

    def __init__(
        self,
        open_door: Callable[[], Door],
        journal_path: str,
        daemon_id: int,
        status: Callable[[], dict[str, Any]],
        run_names: Callable[[], dict[int, str]],
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
        door = self._open_door()
        reader = JournalReader(self._journal_path)
        done, next_status = self._newest, 0.0
        try:
            while not self._stopping.is_set():
                self._news.wait(_INTERVAL_S if door.unsent else 0.2)
                self._news.clear()
                self._subscriptions(door)
                if self._wanted:  # else nothing needs to be read
                    done = self._publish(door, reader, done)
                    if time.monotonic() >= next_status:
                        next_status = time.monotonic() + _STATUS_S
                        message = {
                            "status": self._status(),
                            "totals": self._totals(reader, done),
                        }
                        self._send(door, STATUS_TOPIC, _pack(message))
                    self._stopping.wait(_INTERVAL_S)
                else:
                    done = self._newest
        finally:
            reader.close()
            door.close()

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

    def _publish(self, door: Door, reader: JournalReader, done: int) -> int:
        if self._newest - done > _MAX_BEHIND_ROWS:
            done = self._newest - _MAX_BEHIND_ROWS
        names = self._run_names()
        for row in reader.rows(done):
            done = row.id
            run_id = reader.run_of_client(row.client_id)
            run = names.get(run_id, "")
            topic = run.encode() + b"\0"
            if not self._is_wanted(topic):
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
            self._send(door, topic, _pack(message))
        return done

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

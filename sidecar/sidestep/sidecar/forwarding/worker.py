"""The worker that passes a run on: reads the journal, speaks for its clients, stores its cursor.

A process like any sink's, with the same words to and from its daemon. It is killed with its daemon,
or at any other time: what was not acknowledged by the next daemon is read from the journal again.
"""

from __future__ import annotations

import os
import queue
import socket
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sidestep.proto import Alarm, Books, Tags
from sidestep.proto.keys import KeysError

from ..journal import check as journal_check
from ..journal.reader import JournalReader
from ..supervision import cursor_file
from .crossing import Crossing, jitter
from .delivery import Delivery
from .links import keys_for
from .passage import Passage
from .passengers import Passenger, Passengers
from .units import tags_messages

_WINDOW_BYTES: Final = 16 << 20
"""Of records that wait for their acknowledgement, of all clients together."""

_READ_BYTES: Final = 1 << 20
_LOOK_S: Final = 0.5
_STORE_S: Final = 0.05
_SAY_S: Final = 1.0
_FAREWELL_S: Final = 10.0
"""After so long without an answer to a goodbye another worker tries, when there is hope again."""

_WAIT_S: Final = 0.1


class ForwardWorker:
    """Passes one run on.

    Args:
        settings: ``endpoint`` and ``keys`` (a folder, or None): see `wanted`.
        run_id: the journal's id of the run.
        journal_path: the database.
        cursor_path: the cursor's file.
        report: called with what the daemon should know.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        run_id: int,
        journal_path: str,
        cursor_path: str,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self._settings = settings
        self._run_id = run_id
        self._journal_path = journal_path
        self._cursor_path = cursor_path
        self._report = report
        self._books: dict[int, Books] = {}
        self._closing: Mapping[str, Any] | None = None
        self._leave_by = 0.0
        self._read_all = False
        self._next_look = self._next_store = self._next_say = self._next_goodbyes = 0.0
        self._said: tuple[str, str | None] = "starting", None
        self._unstored: str | None = None  # why the cursor could not be stored

    def serve(self, inbox: queue.SimpleQueue[dict[str, Any]]) -> bool:
        """Work until the daemon says ``close``; False when a new process must go on."""
        self._reader = JournalReader(self._journal_path)
        identity = self._reader.identity()
        self._passengers = Passengers(self._reader, self._run_id, socket.gethostname())
        self._cursor = cursor_file.load(self._cursor_path, identity)
        self._passage = Passage(self._cursor, self._deliver)
        self._say("starting", None)
        endpoint, keys = str(self._settings["endpoint"]), self._settings["keys"]
        try:
            self._crossing = Crossing(endpoint, keys_for(endpoint, keys))
        except KeysError as error:
            self._say("failed", str(error))
            return True
        try:
            self._work(Inbox(inbox, self._crossing))
        except Exception as error:  # noqa: BLE001 - whatever it is, another process goes on
            traceback.print_exc()
            damage = isinstance(error, sqlite3.Error) and journal_check.is_corrupt(error)
            self._say(
                "degraded", f"{type(error).__name__}: {error}", str(error) if damage else None
            )
            return False
        finally:
            self._crossing.close()
        return True

    # --- the loop ------------------------------------------------------------------------------

    def _work(self, inbox: Inbox) -> None:
        while True:
            for message in inbox.messages():
                self._obey(message)
            self._read(time.monotonic())
            self._crossing.keep(self._passage.deliveries)
            self._crossing.turn(_WAIT_S)
            now = time.monotonic()
            self._advance(now)
            if self._crossing.is_final():
                self._say("failed", self._crossing.trouble())
                return
            self._look_at_it(now)
            if self._closing is not None and self._may_leave(now):
                return

    def _obey(self, message: Mapping[str, Any]) -> None:
        match message.get("op"):
            case "close":
                self._closing = message
                self._leave_by = time.monotonic() + _FAREWELL_S
                self._next_look = 0.0
            case "books":
                self._books = {int(n): Books(**fields) for n, fields in message["clients"]}
            case _:
                self._read_all = False

    def _read(self, now: float) -> None:
        """Look at the clients now and then, and read rows as long as there is room for them."""
        passage = self._passage
        if now >= self._next_look:
            self._next_look = now + _LOOK_S
            self._look()
        while not self._read_all and passage.nbytes < _WINDOW_BYTES:
            rows = self._reader.rows(passage.read_row, self._run_id, max_bytes=_READ_BYTES)
            if not rows:
                passage.no_more_rows()
                self._read_all = True
                return
            if passage.unknown(rows):
                self._look()
            passage.take(rows)
            self._crossing.hurry()

    def _look(self) -> None:
        self._run = self._reader.runs()[self._run_id]
        self._passage.look(self._passengers.all(), self._books)
        self._read_all = False

    def _advance(self, now: float) -> None:
        """See how far it has come, and store that now and then."""
        goodbyes = self._read_all and now >= self._next_goodbyes
        if goodbyes:
            self._next_goodbyes = now + _STORE_S
        self._passage.advance(now, goodbyes=goodbyes)
        if self._passage.cursor is self._cursor or now < self._next_store:
            return
        self._next_store = now + _STORE_S
        try:
            # What is not on the disk is not so: rows would leave the journal that are needed again.
            cursor_file.store(self._cursor_path, self._passage.cursor)
        except OSError as error:
            self._unstored = f"its cursor cannot be stored: {error}"
            return
        self._cursor, self._unstored = self._passage.cursor, None
        self._next_say = 0.0

    def _look_at_it(self, now: float) -> None:
        trouble = self._crossing.trouble() or self._unstored
        alarms = self._passage.alarms()
        said = "degraded" if trouble else "ok", trouble
        if alarms or now >= self._next_say or said != self._said:
            self._next_say = now + _SAY_S
            self._say(*said, alarms=alarms)

    def _may_leave(self, now: float) -> bool:
        """The daemon wants it to end: whether it has, with the goodbyes of those that have gone."""
        finished = bool(self._closing and self._closing.get("finished"))
        said = self._read_all and self._passage.empty
        if finished and not said and now < self._leave_by:
            return False
        self._next_store = 0.0
        self._advance(now)
        if (finished and not said) or self._unstored:
            trouble = self._crossing.trouble() or self._unstored or "a goodbye was not answered"
            self._say("degraded", trouble)
        else:
            self._say("closed", None)
        return True

    # --- what the passage needs ----------------------------------------------------------------

    def _deliver(self, passenger: Passenger, acked: tuple[int, int]) -> Delivery:
        hello = self._passengers.introduced(passenger, self._run, time.time_ns() >> 20)
        hello = replace(hello, acked_seq=acked[0], acked_dropped=acked[1])
        send, add = self._crossing.sender()

        def define(first: int) -> Iterator[Tags]:
            return tags_messages(self._reader.new_tag_sets(passenger.id, first))

        delivery = Delivery(hello, define, send, jitter)
        add(delivery)
        return delivery

    def _say(
        self,
        state: str,
        error: str | None,
        damage: str | None = None,
        alarms: Sequence[Alarm] = (),
    ) -> None:
        self._said = state, error
        self._report(
            {
                "state": state,
                "row": self._cursor.row,
                "total": self._cursor.total,
                "dropped": 0,
                "error": error,
                "skipped": self._passage.skipped,
                "retry_in_s": 0.0,
                "trouble": None,
                "journal_damage": damage,
                "alarms": [(a.tag, a.state, a.step, a.reason) for a in alarms],
            }
        )


class Inbox:
    """What the daemon says, in a way that ends the wait for the next daemon's words."""

    def __init__(self, source: queue.SimpleQueue[dict[str, Any]], crossing: Crossing) -> None:
        self._source = source
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._awake, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        crossing.wake_by(self._awake)
        threading.Thread(target=self._pass_on, name="news", daemon=True).start()

    def messages(self) -> Iterator[dict[str, Any]]:
        """What has come."""
        try:
            os.read(self._awake, 4096)
        except BlockingIOError:
            pass
        while not self._messages.empty():
            yield self._messages.get()

    def _pass_on(self) -> None:
        while True:
            self._messages.put(self._source.get())
            try:
                os.write(self._wake, b"\0")
            except BlockingIOError:
                pass  # it is awake

"""The webhook of one run as a worker: reads the journal's transitions, and posts them.

What was read and not taken yet is kept in the cursor's state: rows leave the journal however long
the other end is away, and a notice outlives this process and its daemon. It leaves the state when
the other end has taken it. Who dies between the two posts it again: at least once, with the same
id. The cursor's `total` is behind by the notices that wait: that is the lag that `status` shows and
`drain` waits for.

- Gathering: a message goes a second after its first notice, and no sooner than ten seconds after
  the message before; it has all that came until then. Who drains, and a run's end, does not wait.
- Failures: tried again after 1, 2, 4, ... 30 s, or when the other end says (Retry-After). What only
  a person can mend is `failed`, and tried every 30 s all the same.
- A notice that nobody has taken for a day is no news: it is let go, and counted as skipped.
"""

from __future__ import annotations

import hashlib
import queue
import sqlite3
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from sidestep.proto import RemoteProtocolError, RunSpec, Value

from .. import alarms
from ..alarms import State
from ..journal.reader import JournalReader, Row
from ..rows.points import read_points
from ..supervision import cursor_file
from ..supervision.cursor_file import Cursor
from .message import MAX_NOTICES, body, notice_of, unpacked
from .post import Outcome, Post, post

_GATHER_S: Final = 1.0
_INTERVAL_S: Final = 10.0
_STALE_S: Final = 86400.0
_BACKOFF_FIRST_S: Final = 1.0
_BACKOFF_LAST_S: Final = 30.0
_HOPE_S: Final = 60.0
"""A receiver that has been away for so long is waited for by nobody; it is tried all the same."""

_POLL_S: Final = 1.0
_READ_EVERY_S: Final = 0.2
_SAY_EVERY_S: Final = 20.0
"""While something waits, the daemon hears so often that nothing hangs."""


class WebhookWorker:
    """Posts until it is told to close.

    Args:
        settings: ``url``, ``min_state`` and ``host``: see `wanted`.
        run_id: the journal's id of the run.
        run: the run's description.
        journal_path: the database.
        cursor_path: the cursor's file.
        report: called with what the daemon should know.
        log: says something to the daemon's log.
        send: posts a body.
        clock: wall time in seconds: what it decides holds for the next process, too.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        run_id: int,
        run: RunSpec,
        journal_path: str,
        cursor_path: str,
        report: Callable[[dict[str, Any]], None],
        log: Callable[[str], None] = print,
        send: Post = post,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = str(settings["url"])
        self._min_state = State(str(settings["min_state"]))
        self._host = str(settings["host"])
        self._run_id = run_id
        self._run = run
        self._cursor_path = cursor_path
        self._report = report
        self._log = log
        self._send = send
        self._clock = clock
        self._reader = JournalReader(journal_path)
        self._journal = self._reader.identity()
        cursor = cursor_file.load(cursor_path, self._journal)
        state = cursor.state or {}
        self._waiting = unpacked(state.get("waiting"))
        self._left_out = _number(state.get("left_out"))
        self._skipped = _number(state.get("skipped"))
        self._sent_at = float(_number(state.get("sent_at")))
        self._not_before = float(_number(state.get("not_before")))
        self._address = hashlib.sha256(self._url.encode()).hexdigest()[:16]
        if state.get("address") != self._address:
            self._not_before = 0.0  # another one has not asked us to wait
        self._row, self._total = cursor.row, cursor.total + len(self._waiting)
        self._stored: Cursor | None = None
        self._first_at = 0.0  # since when the oldest of those that wait does; at once after a start
        self._failures = 0
        self._outcome = Outcome()
        self._said: dict[str, Any] = {}
        self._said_at = 0.0
        self._failing_since = 0.0

    def serve(self, inbox: queue.SimpleQueue[dict[str, Any]]) -> bool:
        """Work until the daemon says ``close``; False when only a new process can go on."""
        self._say("starting")
        try:
            return self._serve(inbox)
        except (OSError, sqlite3.Error) as error:
            self._log(f"webhook of run {self._run.name!r}: {error}")
            self._outcome = Outcome(f"{type(error).__name__}: {error}")
            self._say("degraded")
            return False

    def _serve(self, inbox: queue.SimpleQueue[dict[str, Any]]) -> bool:
        hurried = False
        while True:
            self._read()
            if not self._post_if_due(at_once=hurried):
                return False
            self._say_state()
            closing, hurry = self._news(inbox, at_once=hurried)
            hurried = bool(self._waiting) and (hurried or hurry)
            if closing:
                self._read()
                going = self._post_if_due(at_once=True)
                self._say("closed" if not self._waiting else "degraded")
                return going

    # --- the journal -----------------------------------------------------------------------------

    def _read(self) -> None:
        """Take the transitions since the last time, and pass all other rows."""
        newest, total = self._reader.newest(self._run_id)
        if newest > self._row:
            had = bool(self._waiting)
            after = self._row
            while rows := self._reader.rows(after, self._run_id, kinds=[alarms.KIND], until=newest):
                for row in rows:
                    self._take(row)
                after = rows[-1].id
            if self._waiting and not had:
                self._first_at = self._clock()
            self._row, self._total = newest, total
        self._forget_the_old()
        self._store()

    def _take(self, row: Row) -> None:
        for refresh in (False, True):
            try:
                tag_sets = self._reader.tag_sets(row.client_id, refresh)
                values = [v for v in read_points(row.data, tag_sets) if isinstance(v, Value)]
                break
            except RemoteProtocolError:
                values = []
        for value in values:
            if value.kind != alarms.KIND:
                continue
            try:
                notice = notice_of(self._run, value, self._min_state)
            except (KeyError, TypeError, ValueError) as error:
                self._skipped += 1
                self._log(f"webhook: row {row.id} has no alarm as expected: {error!r}")
                continue
            if notice is not None:
                self._waiting.append(notice)
        if len(self._waiting) > MAX_NOTICES:
            self._left_out += len(self._waiting) - MAX_NOTICES
            del self._waiting[:-MAX_NOTICES]

    def _forget_the_old(self) -> None:
        now = self._clock()
        fresh = [notice for notice in self._waiting if now - notice.time < _STALE_S]
        if gone := len(self._waiting) - len(fresh):
            self._log(f"webhook of run {self._run.name!r}: {gone} alarms are a day old")
            self._skipped += gone
            self._waiting = fresh

    def _store(self) -> None:
        state: dict[str, object] = {
            "waiting": [notice.packed() for notice in self._waiting],
            "left_out": self._left_out,
            "skipped": self._skipped,
            "sent_at": self._sent_at,
            "not_before": self._not_before,
            "address": self._address,
        }
        total = self._total - len(self._waiting)
        cursor = Cursor(self._row, total, state, self._journal)
        if cursor != self._stored:
            cursor_file.store(self._cursor_path, cursor)
            self._stored = cursor

    # --- the other end ---------------------------------------------------------------------------

    def _due_in_s(self, *, at_once: bool) -> float:
        """Seconds until what waits may go; a clock that was set back delays nothing for long."""
        now = self._clock()
        left = _left(self._not_before, now, 3600.0)
        if not at_once:
            left = max(
                left,
                _left(self._first_at + _GATHER_S, now, _GATHER_S),
                _left(self._sent_at + _INTERVAL_S, now, _INTERVAL_S),
            )
        return left

    def _post_if_due(self, *, at_once: bool) -> bool:
        """Post what waits, if it is time; False when a post hangs in this process for ever."""
        if not self._waiting or self._due_in_s(at_once=at_once) > 0:
            return True
        notices = list(self._waiting)
        outcome = self._send(self._url, body(self._run, self._host, notices, self._left_out))
        now = self._clock()
        if outcome.error is None:
            self._waiting, self._left_out = [], 0
            self._failures, self._sent_at, self._not_before = 0, now, 0.0
        else:
            if not self._failures:
                self._failing_since = time.monotonic()
            self._failures += 1
            pause = min(_BACKOFF_LAST_S, _BACKOFF_FIRST_S * 2 ** min(self._failures - 1, 8))
            if outcome.hopeless:
                pause = _BACKOFF_LAST_S
            self._not_before = now + max(pause, outcome.retry_after_s or 0.0)
        if outcome.error != self._outcome.error and outcome.error is not None:
            self._log(f"webhook of run {self._run.name!r}: {outcome.error}")
        self._outcome = outcome
        self._store()
        if outcome.hung:
            self._say_state()
        return not outcome.hung

    def _news(
        self, inbox: queue.SimpleQueue[dict[str, Any]], *, at_once: bool
    ) -> tuple[bool, bool]:
        """Wait until there may be something to do: whether to close, whether somebody waits."""
        wait_s = _POLL_S
        if self._waiting:
            wait_s = min(wait_s, max(0.01, self._due_in_s(at_once=at_once)))
        deadline = time.monotonic() + wait_s
        while True:
            try:
                op = inbox.get(timeout=max(0.0, deadline - time.monotonic())).get("op")
            except queue.Empty:
                return False, False
            if op == "close":
                return True, False
            if op == "hurry":
                return False, True
            # Rows: those of a short while are looked at together.
            deadline = min(deadline, time.monotonic() + _READ_EVERY_S)

    # --- what the daemon hears -------------------------------------------------------------------

    def _say_state(self) -> None:
        if self._outcome.error is None or not self._waiting:
            self._say("ok")
        else:
            is_away = time.monotonic() - self._failing_since >= _HOPE_S
            self._say("failed" if self._outcome.hopeless or is_away else "degraded")

    def _say(self, state: str) -> None:
        many = len(self._waiting)
        said: dict[str, Any] = {
            "state": state,
            "row": self._row,
            "total": self._total - many,
            "dropped": 0,
            "error": None,
            "skipped": self._skipped,
            "retry_in_s": 0.0,
            "trouble": None,
            "journal_damage": None,
        }
        if state in ("degraded", "failed"):
            why = self._outcome.error or "the daemon leaves before they could go"
            said["error"] = f"{many} alarm{'' if many == 1 else 's'} not delivered: {why}"
            if not many:
                said["error"] = why
        now = time.monotonic()
        if said != self._said or (many and now - self._said_at > _SAY_EVERY_S):
            self._said, self._said_at = said, now
            self._report({**said, "retry_in_s": self._due_in_s(at_once=True)})


def _left(until: float, now: float, most: float) -> float:
    left = until - now
    return left if 0 < left <= most else 0.0


def _number(stored: object) -> Any:
    return stored if isinstance(stored, int | float) and not isinstance(stored, bool) else 0

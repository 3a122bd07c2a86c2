"""Values that take long to make (figures): made one after the other in a thread of its own.

The thread is started when the first one comes. What waits is bounded; one too many is dropped and
counted. A value under way counts as held: it leaves `pending` in one step with its entry into the
outbox, so that the books balance at every moment.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

from .outbox import Outbox, OutboxClosedError

MAX_PENDING: Final = 32
"""Values that may be under way."""

_POLL_S: Final = 0.002

Make = Callable[[], Callable[[], object]]
"""Makes a value; what it returns puts the value into the outbox."""


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    make: Make
    on_error: Callable[[Exception], object]


class Renders:
    """What a client has under way.

    Args:
        outbox: where its losses are counted, and whose lock covers what is under way.
        max_pending: values that may be under way before new ones are dropped.
    """

    def __init__(self, outbox: Outbox, max_pending: int = MAX_PENDING) -> None:
        self._outbox = outbox
        self._max_pending = max_pending
        self._under_way: set[_Job] = set()
        # Its `put` may interrupt itself: a signal handler emits too.
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def pending(self) -> int:
        """How many are under way; in step with the outbox's books inside of `Outbox.together`."""
        return len(self._under_way)

    def submit(self, make: Make, on_error: Callable[[Exception], object]) -> None:
        """Have a value made and put into the outbox, later; or drop and count it.

        Args:
            make: runs in the thread.
            on_error: told there of what was raised by it, or by what it returned.

        Raises:
            OutboxClosedError: nothing may be emitted any more.
        """
        job = _Job(make, on_error)
        if not self._outbox.together(lambda: self._add(job)):
            return
        try:
            if self._thread is None:
                self._start()
            self._queue.put(job)
        except BaseException as error:  # an interrupt; or no thread can be had, as at the exit
            self._outbox.together(lambda: self._lose(job))
            if not isinstance(error, RuntimeError):
                raise

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is under way, for at most `timeout_s`; whether nothing is."""
        deadline = time.monotonic() + timeout_s
        while self._under_way:
            # The thread may be waiting for the very call that this one has interrupted.
            in_vain = self._outbox.interrupted() or threading.current_thread() is self._thread
            if in_vain or time.monotonic() >= deadline:
                return False
            # No condition is awaited: its lock would deadlock with a signal handler's flush.
            time.sleep(_POLL_S)
        return True

    def give_up(self) -> None:
        """Take nothing more, and count what is under way as dropped."""

        def give_up() -> None:
            self._closed = True
            for job in list(self._under_way):
                self._lose(job)

        self._outbox.together(give_up)
        self._queue.put(None)

    def abandon(self) -> None:
        """In a forked child, which has no such thread: nothing is under way here."""
        self._closed = True
        self._under_way = set()

    # --- in step with the books ------------------------------------------------------------------

    def _add(self, job: _Job) -> bool:
        if self._closed:
            raise OutboxClosedError("emitted after finish")
        if len(self._under_way) >= self._max_pending:
            self._outbox.count_lost(1)
            return False
        self._under_way.add(job)
        return True

    def _lose(self, job: _Job) -> None:
        if job in self._under_way:
            self._under_way.discard(job)
            self._outbox.count_lost(1)

    def _land(self, job: _Job, put: Callable[[], object]) -> None:
        if job in self._under_way:  # not given up meanwhile
            put()
            self._under_way.discard(job)

    def _fail(self, job: _Job) -> bool:
        awaited = job in self._under_way
        self._under_way.discard(job)
        return awaited

    # --- the thread ------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start the thread, once, whoever comes first.

        Raises:
            RuntimeError: the interpreter is on its way out, or there are too many threads.
        """
        # A daemon: the exit waits for it in `Client.finish`, which has a timeout.
        made = threading.Thread(target=self._run, name="sidestep-renders", daemon=True)

        def claim() -> bool:
            if self._thread is None:
                self._thread = made
            return self._thread is made

        if self._outbox.together(claim):
            try:
                made.start()
            except BaseException:
                self._thread = None
                raise

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            self._do(job)
            del job  # a figure is large, and the next one may be long in coming

    def _do(self, job: _Job) -> None:
        try:
            put = job.make()
            self._outbox.together(lambda: self._land(job, put))
        except Exception as error:  # noqa: BLE001 - matplotlib's, or of whoever made the figure
            if self._outbox.together(lambda: self._fail(job)):
                job.on_error(error)

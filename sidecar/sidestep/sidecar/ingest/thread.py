"""Takes what clients send, journals it, and acknowledges what is committed: one thread.

It owns the gates where peers come in, and the journal's writing end. Each round: read what has
arrived, let the sessions decide, do what they say inside one transaction, commit, acknowledge.
Samplers and derivers reach it through `submit`, so that what they say is as durable as what was
sent; dead clients' outboxes are read a few megabytes a round, so that the living are answered in
between.
"""

from __future__ import annotations

import queue
import secrets
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from sidestep.proto import (
    ByeAck,
    Hello,
    LocalProtocolError,
    Message,
    Nack,
    Reject,
    RemoteProtocolError,
    Value,
    decode,
    encode,
)

from ..alarms import KIND as ALARM_KIND
from ..journal import check as journal_check
from ..journal.storage import Storage
from ..journal.writer import Journal
from ..peers.gates import Gates
from ..peers.quarantine import Quarantine
from ..peers.refusals import Refusals
from ..peers.tcp_door import TcpDoor
from .adopt import Adoption, find_dead
from .clients import Clients
from .own_points import OwnPoints
from .roster import ClientEntry, DaemonPoints, Limits, PassedAlarm, Snapshot

_ROUND_BYTES: Final = 4 << 20
_ROUND_FRAMES: Final = 500
_GATHER_S: Final = 0.004
"""What comes within this is one round: each has a transaction."""

_POLL_MS: Final = 100
_SCAN_S: Final = 1.0
_STRANGE: Final = frozenset({"version", "no_protocol"})
"""What a frame is refused for when its sender will never say anything else."""


class Ingest(threading.Thread):
    """The thread. Other threads use `submit`, `trim`, `scan`, `snapshot` and `stop` only.

    Args:
        endpoints: Unix sockets to listen at, ``ipc://PATH``.
        open_journal: opens the journal; called in this thread, which alone uses it.
        outbox_dirs: where dead clients' outboxes may lie.
        limits: what to grant.
        quarantine: folder for samples of what is refused.
        on_commit: called after each commit that added rows, with the newest row.
        log: says something to the daemon's log.
        open_tcp: listens at the TCP address, if there is one; called in this thread.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        open_journal: Callable[[], Journal],
        outbox_dirs: Sequence[str],
        limits: Limits,
        quarantine: str,
        on_commit: Callable[[int], None],
        log: Callable[[str], None],
        open_tcp: Callable[[], TcpDoor] | None = None,
    ) -> None:
        super().__init__(name="ingest", daemon=True)
        self.daemon_id = secrets.randbits(62)
        self.snapshot = Snapshot()
        self.ready = threading.Event()
        self.failed: BaseException | None = None
        self.rounds = 0  # grows as long as this thread gets anywhere
        self._endpoints = endpoints
        self._open_journal = open_journal
        self._outbox_dirs = outbox_dirs
        self._limits = limits
        self._on_commit = on_commit
        self._log = log
        self._refusals = Refusals(Quarantine(quarantine), log)
        self._open_tcp = open_tcp
        self._inbox: queue.SimpleQueue[DaemonPoints | PassedAlarm | Mapping[int, int]]
        self._inbox = queue.SimpleQueue()
        self._held_points: deque[DaemonPoints] = deque()  # for the disk
        self._stopping = threading.Event()
        self._adoptions: deque[Adoption] = deque()
        self._adopting: ClientEntry | None = None  # the client of the first of them
        self._next_scan = self._round_began = 0.0
        self._full = self._unsure = False
        self._scan_wanted = self._scanned = self._lost_rounds = self._refused_deriver = 0
        self._alarms: list[tuple[int, Value]] = []  # of this round, with their runs
        self._answers: list[tuple[bytes, Message]] | None = None  # held back for the snapshot
        self._goodbyes: list[tuple[bytes, Message]] = []  # held back for the commit

    # --- other threads -------------------------------------------------------------------

    def submit(self, points: DaemonPoints | PassedAlarm) -> None:
        """Have points journalled that the daemon itself made, or its clients told of an alarm."""
        self._inbox.put(points)

    def trim(self, passed: Mapping[int, int]) -> None:
        """Let rows go that all readers of their run have passed."""
        self._inbox.put(passed)

    def scan(self) -> int:
        """Look for dead clients' outboxes now; done when `snapshot.scanned` reaches the result.

        Called by the main thread alone.
        """
        self._scan_wanted += 1
        return self._scan_wanted

    def stop(self) -> None:
        """End the thread after its round."""
        self._stopping.set()

    # --- the thread ------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until stopped."""
        try:
            self._journal = self._open_journal()
            self._storage = Storage(self._journal, self._log)
            self._own = OwnPoints(self._journal, self._refusals, numbered=self._limits.passes_on)
            self._clients = Clients(
                self._journal,
                self.daemon_id,
                self._limits,
                self._send,
                self._own.purge,
                self._log,
                self._refusals,
            )
            self._clients.load()
            self._gates = Gates(
                self._endpoints, self._open_tcp, self._limits.max_connections, self._refusals
            )
        except BaseException as error:  # noqa: BLE001 - whoever waits for us must hear of it
            self.failed = error
            self.ready.set()
            return
        self._publish()
        self.ready.set()
        try:
            while not self._stopping.is_set() and not self._storage.gone(time.monotonic()):
                self._round()
                self.rounds += 1
        finally:
            self._gates.close()
            self._journal.close()

    def _round(self) -> None:
        frames = self._receive()
        now = time.monotonic()
        if self._unsure and not self._remember():
            return  # what has come will be sent again
        waiting = self._storage.refuses(now)
        self._clients.credit = 0 if waiting else self._limits.credit_bytes
        before = self._journal.last_row
        touched: list[ClientEntry] = []
        try:
            for identity, frame in frames:
                entry = self._frame(identity, frame, now)
                if entry is not None:
                    touched.append(entry)
            self._inbox_round(waiting)
            if waiting:
                self._journal.reclaim()
            else:
                touched += self._adoption_round(now)
            adopting = [a.hello.run for a in self._adoptions if not a.exhausted]
            touched += self._clients.settle(adopting, now)
            self._clients.look_after(now)
            self._clients.store()
            self._journal.commit()
        except sqlite3.Error as error:
            if journal_check.is_corrupt(error):
                self.condemn(str(error))
            else:
                self._storage_failed(error, now)
            return
        # Who hears that something is durable may ask the other threads for it at once.
        self._answers, self._goodbyes = self._goodbyes, []
        for entry in {id(e): e for e in touched if e.committing}.values():
            self._clients.committed(entry)
        for run_id, alarm in self._alarms:
            self._clients.alarm(run_id, alarm)
        self._alarms.clear()
        self._finish_adoptions()
        self._publish()
        answers, self._answers = self._answers, None
        for identity, message in answers:
            self._put(identity, message)
        if self._journal.last_row > before:
            self._on_commit(self._journal.last_row)

    def _receive(self) -> list[tuple[bytes, bytes]]:
        """The frames of this round, with whom they are of."""
        busy = self._adoptions or not self._inbox.empty()
        if not busy and not self._full:
            # With many clients something comes all the time: a round for each would be dear.
            self._stopping.wait(max(0.0, self._round_began + _GATHER_S - time.monotonic()))
        self._round_began = time.monotonic()
        found = self._gates.receive(0 if busy else _POLL_MS, _ROUND_FRAMES, _ROUND_BYTES)
        nbytes = sum(len(frame) for _, frame in found)
        self._full = len(found) >= _ROUND_FRAMES // 4 or nbytes >= _ROUND_BYTES // 4
        return found

    # --- messages ----------------------------------------------------------------------------

    def _frame(self, identity: bytes, frame: bytes, now: float) -> ClientEntry | None:
        try:
            message = decode(frame)
        except RemoteProtocolError as error:
            self._refusals.note("frame", error.code, str(error), frame)
            answer = Reject if error.code in _STRANGE else Nack
            self._send(identity, answer(error.code, str(error)))
            return None
        entry = self._clients.receive(identity, message, now)
        if isinstance(message, Hello) and entry is not None and entry.identity == identity:
            self._gates.admit(identity)
        return entry

    # --- what the daemon itself says -----------------------------------------------------------

    def _inbox_round(self, waiting: bool) -> None:
        while self._held_points and not waiting:
            self._inbox.put(self._held_points.popleft())
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, DaemonPoints) and waiting:
                if item.derived_row is not None:
                    self._held_points.append(item)  # one of a run; a sample is let go
                continue
            if isinstance(item, PassedAlarm):
                self._clients.pass_alarm(item.run_id, item.alarm)
                continue
            self._journal.begin()
            if isinstance(item, DaemonPoints):
                run = self._clients.runs.get(item.run_id)
                if run is None:
                    continue
                self._clients.published.touch_run(run.id)
                if not self._own.append(run, item):
                    self._refused_deriver = item.deriver
                else:
                    self._alarms += [(run.id, v) for v in item.values if v.kind == ALARM_KIND]
            elif self._journal.trim(item, gently=waiting):
                self._inbox.put(item)  # the rest of it in another transaction
                return

    # --- clients that have gone ----------------------------------------------------------------

    def _adoption_round(self, now: float) -> list[ClientEntry]:
        """Find dead clients' outboxes, and read a little of the first one."""
        wanted = self._scan_wanted
        awaited = wanted > self._scanned or self._clients.attempts.scan_wanted
        if awaited or now >= self._next_scan:
            self._clients.attempts.scan_wanted = False
            self._next_scan = now + _SCAN_S
            known = {adoption.path for adoption in self._adoptions}
            for found in find_dead(self._outbox_dirs, known, self._log):
                self._adoptions.append(found)
            self._scanned = wanted
        if not self._adoptions:
            return []
        adoption = self._adoptions[0]
        if self._adopting is None:
            self._adopting = self._clients.adopt(adoption.hello)
        entry = self._adopting
        self._clients.published.touch(entry)
        for message in adoption.take(_ROUND_BYTES):
            self._clients.handle(entry, message)
        if adoption.exhausted:
            session = entry.session
            session.books = adoption.books(session.taken_seq, session.taken_dropped)
            entry.row.state = "finished" if adoption.finished else "lost"
            entry.changed = True
            self._journal.begin()
        return [entry]

    def _finish_adoptions(self) -> None:
        """After the commit: an outbox that was read to its end is no longer needed."""
        if self._adoptions and self._adoptions[0].exhausted:
            adoption = self._adoptions.popleft()
            self._adopting = None
            self._log(adoption.told())
            if adoption.damage is not None:
                self._refusals.note("record", "damaged_outbox", adoption.damage)
            adoption.remove()

    # --- storage, sending, publishing ----------------------------------------------------------

    def condemn(self, why: str) -> None:
        """Nobody can use this journal: end, and with this thread the daemon."""
        if not self._stopping.is_set():
            journal_check.condemn(self._journal.path, why)
            self._log(f"the journal is damaged ({why}): the next daemon puts it aside")
            self._stopping.set()

    def _storage_failed(self, error: sqlite3.Error, now: float) -> None:
        """The disk is full or worse: undo, stop the clients' sending, and try again."""
        self._storage.failed(error, now)
        self._forget_round()
        if self._remember():
            self._stopping.wait(0.05)

    def _remember(self) -> bool:
        """Know what the journal has; until then nobody can be answered."""
        try:
            self._journal.rollback()
            self._clients.forget()
        except sqlite3.Error as error:
            self._unsure = True
            self.snapshot = replace(self.snapshot, storage_error=str(error))
            if journal_check.is_corrupt(error):
                self.condemn(str(error))
            self._stopping.wait(0.05)
            return False
        self._unsure = False
        self._publish()
        return True

    def _forget_round(self) -> None:
        """Nothing of the failed round happened."""
        for adoption in self._adoptions:
            adoption.close()  # a scan finds it again
        self._adoptions.clear()
        self._adopting = None
        self._alarms.clear()
        self._goodbyes.clear()
        self._held_points.clear()  # said again, as all that was in the round
        self._lost_rounds += 1
        self._own.forget()

    def _send(self, identity: bytes, message: Message) -> None:
        if self._answers is not None:
            self._answers.append((identity, message))
        elif isinstance(message, ByeAck):
            # Who hears it deletes its outbox: its last books must not go down with this round.
            self._goodbyes.append((identity, message))
        else:
            self._put(identity, message)

    def _put(self, identity: bytes, message: Message) -> None:
        try:
            self._gates.send(identity, encode(message))
        except LocalProtocolError:
            pass  # it will ask again

    def _publish(self) -> None:
        published = self._clients.published
        clients, runs = published.clients(), published.runs()
        self.snapshot = Snapshot(
            self._journal.last_row,
            dict(self._journal.totals),
            runs,
            clients,
            self._storage.error,
            len(self._adoptions),
            self._scanned,
            self._refusals.frames + self._gates.refused,
            self._lost_rounds,
            self._journal.old_row,
            refused_deriver=self._refused_deriver,
            refused=self._refusals.status(),
        )

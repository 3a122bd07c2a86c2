"""Takes what clients send, journals it, and acknowledges what is committed: one thread.

It owns the data socket and the journal's writing end. Each round: read what has arrived, let the
sessions decide, do what they say inside one transaction, commit, acknowledge. Samplers and derivers
reach it through `submit`, so that what they say is as durable as what was sent; dead clients'
outboxes are read a few megabytes a round, so that the living are answered in between.
"""

from __future__ import annotations

import queue
import secrets
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import zmq

from sidestep.proto import (
    Books,
    Gap,
    Hello,
    LocalProtocolError,
    Message,
    Nack,
    Reject,
    RemoteProtocolError,
    RunSpec,
    ServerSession,
    Value,
    decode,
    encode,
)
from sidestep.proto.limits import MAX_FRAME_BYTES, MAX_TAG_SETS
from sidestep.proto.records import Scalars, encode_scalars, encode_value
from sidestep.proto.session import DEAD_S, Append, CountGap, DefineTags, Farewell, Send, ServerAction

from .adopt import Adoption, find_dead
from .journal import ClientRow, Journal
from .points import check_rows

DERIVER: Final = "derive"
"""Name of the deriver's cursor."""

DERIVED_KIND: Final = "moments"
"""The kind of value that the deriver reads."""

_ROUND_BYTES: Final = 4 << 20
_ROUND_FRAMES: Final = 500
_POLL_MS: Final = 100
_SCAN_S: Final = 1.0
_STORAGE_RETRY_S: Final = 1.0
_REASSEMBLY_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What ingest grants.

    Attributes:
        credit_bytes: unacknowledged bytes that each client may have under way.
        max_clients: clients that may be connected at once.
    """

    credit_bytes: int = 8 << 20
    max_clients: int = 1024


@dataclass(slots=True)
class ClientEntry:
    """A client that this daemon has heard of."""

    row: ClientRow
    session: ServerSession
    hello: Hello
    run: RunSpec
    identity: bytes | None = None
    heard: float = 0.0
    tag_counts: dict[int, int] = field(default_factory=dict[int, int])
    changed: bool = True
    committing: bool = False


@dataclass(slots=True)
class RunEntry:
    """A run with its newest description."""

    id: int
    spec: RunSpec
    last_step: int | None = None
    records: int = 0  # of clients, durable
    to_derive_row: int = 0  # the newest row that the deriver must read
    derived_row: int | None = None  # how far it has come; None when there never was anything


@dataclass(frozen=True, slots=True)
class DaemonPoints:
    """What a sampler or a deriver has to say of a run.

    Attributes:
        run_id: the run.
        source: who says it; numbers of one source share tag sets.
        scalars: (step, time in ns, values by tag).
        values: records that are not numbers.
        derived_row: how far the deriver has read, stored in the same transaction.
    """

    run_id: int
    source: str
    scalars: Sequence[tuple[int, int, Mapping[str, float]]] = ()
    values: Sequence[Value] = ()
    derived_row: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the other threads may know; replaced as a whole after each round."""

    last_row: int = 0
    totals: Mapping[int, int] = field(default_factory=dict[int, int])
    runs: Mapping[int, RunEntry] = field(default_factory=dict[int, RunEntry])
    clients: tuple[ClientEntry, ...] = ()
    storage_error: str | None = None
    adopting: int = 0
    scans: int = 0
    refused_frames: int = 0


class Ingest(threading.Thread):
    """The thread. Other threads use `submit`, `trim`, `scan`, `snapshot` and `stop` only.

    Args:
        context: ZeroMQ context of the daemon.
        endpoints: addresses to listen at.
        open_journal: opens the journal; called in this thread, which alone uses it.
        outbox_dirs: where dead clients' outboxes may lie.
        limits: what to grant.
        on_commit: called after each commit that added rows, with the newest row.
        log: says something to the daemon's log.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoints: Sequence[str],
        open_journal: Callable[[], Journal],
        outbox_dirs: Sequence[str],
        limits: Limits,
        on_commit: Callable[[int], None],
        log: Callable[[str], None],
    ) -> None:
        super().__init__(name="ingest", daemon=True)
        self.daemon_id = secrets.randbits(62)
        self.snapshot = Snapshot()
        self.ready = threading.Event()
        self.failed: BaseException | None = None
        self._context = context
        self._endpoints = endpoints
        self._open_journal = open_journal
        self._outbox_dirs = outbox_dirs
        self._limits = limits
        self._on_commit = on_commit
        self._log = log
        self._inbox: queue.SimpleQueue[DaemonPoints | Mapping[int, int]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._scan_wanted = threading.Event()
        self._clients: dict[bytes, ClientEntry] = {}
        self._by_identity: dict[bytes, ClientEntry] = {}
        self._runs: dict[int, RunEntry] = {}
        self._sources: dict[tuple[int, str], tuple[ClientRow, dict[tuple[str, ...], int]]] = {}
        self._adoptions: deque[Adoption] = deque()
        self._storage_error: str | None = None
        self._storage_retry = 0.0
        self._next_scan = 0.0
        self._scans = self._refused = 0

    # --- other threads -------------------------------------------------------------------

    def submit(self, points: DaemonPoints) -> None:
        """Have points journalled that the daemon itself made."""
        self._inbox.put(points)

    def trim(self, passed: Mapping[int, int]) -> None:
        """Let rows go that all readers of their run have passed."""
        self._inbox.put(passed)

    def scan(self) -> int:
        """Look for dead clients' outboxes now; done when `snapshot.scans` reaches the result."""
        self._scan_wanted.set()
        return self.snapshot.scans + 2  # one may be under way that began before this call

    def stop(self) -> None:
        """End the thread after its round."""
        self._stopping.set()

    # --- the thread ------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until stopped."""
        try:
            self._journal = self._open_journal()
            self._socket = self._listen()
            self._load()
        except BaseException as error:
            self.failed = error
            self.ready.set()
            return
        self._publish()
        self.ready.set()
        try:
            while not self._stopping.is_set():
                self._round()
        finally:
            self._socket.close(linger=0)
            self._journal.close()

    def _listen(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # A client sends within its credit; this bounds one that does not.
        socket.setsockopt(zmq.RCVHWM, 200)
        socket.setsockopt(zmq.SNDHWM, 200)
        for endpoint in self._endpoints:
            socket.bind(endpoint)
        return socket

    def _load(self) -> None:
        """What an earlier daemon knew of its clients: dead or alive, their numbers count."""
        specs = {run: spec for run, spec in self._journal.runs().items()}
        for run_id, spec in specs.items():
            self._runs[run_id] = RunEntry(run_id, spec)
        for run_id, row in self._journal.cursors(DERIVER).items():
            self._runs[run_id].derived_row = row
            self._runs[run_id].to_derive_row = self._journal.newest_row_with(run_id, DERIVED_KIND)
        for client in self._journal.clients():
            run = self._runs[client.run_id]
            if client.state == "daemon":
                continue
            if client.last_step is not None:
                run.last_step = client.last_step
            run.records += client.durable_seq - client.dropped
            session = ServerSession(self.daemon_id, client.durable_seq, client.dropped)
            emitted = client.durable_seq + client.lost
            session.books = Books(emitted, client.dropped + client.lost, client.rejected)
            hello = Hello(client.uuid, 0, 0, run.spec, rank=client.rank)
            entry = ClientEntry(client, session, hello, run.spec, heard=time.monotonic())
            entry.changed = False
            entry.tag_counts = self._journal.tag_counts(client.id)
            self._clients[client.uuid] = entry

    def _round(self) -> None:
        frames = self._receive()
        now = time.monotonic()
        before = self._journal.last_row
        touched: list[ClientEntry] = []
        try:
            for identity, frame in frames:
                entry = self._frame(identity, frame, now)
                if entry is not None:
                    touched.append(entry)
            self._inbox_round()
            touched += self._adoption_round(now)
            self._liveness(now)
            self._store_clients()
            self._journal.commit()
            self._storage_error = None
        except sqlite3.Error as error:
            self._storage_failed(error, now)
            return
        for entry in {id(e): e for e in touched if e.committing}.values():
            entry.committing = False
            self._act(entry, entry.session.committed(), now)
        self._finish_adoptions()
        self._publish()
        if self._journal.last_row > before:
            self._on_commit(self._journal.last_row)

    def _receive(self) -> list[tuple[bytes, bytes]]:
        """The frames of this round; a message of any other form than [identity, frame] is junk."""
        busy = self._adoptions or not self._inbox.empty()
        found: list[tuple[bytes, bytes]] = []
        nbytes = 0
        if not self._socket.poll(0 if busy else _POLL_MS):
            return found
        while len(found) < _ROUND_FRAMES and nbytes < _ROUND_BYTES:
            try:
                parts = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            if len(parts) != 2:
                self._refused += 1
                continue
            found.append((parts[0], parts[1]))
            nbytes += len(parts[1])
        return found

    # --- messages ----------------------------------------------------------------------------

    def _frame(self, identity: bytes, frame: bytes, now: float) -> ClientEntry | None:
        try:
            message = decode(frame)
        except RemoteProtocolError as error:
            self._refused += 1
            answer = Reject if error.code == "version" else Nack
            self._send(identity, answer(error.code, str(error)))
            return None
        if isinstance(message, Hello):
            return self._hello(identity, message, now)
        entry = self._by_identity.get(identity)
        if entry is None:
            self._send(identity, Nack("unknown_session", "say HELLO first"))
            return None
        entry.heard = now
        self._message(entry, message, now)
        return entry

    def _hello(self, identity: bytes, hello: Hello, now: float) -> ClientEntry | None:
        entry = self._clients.get(hello.uuid)
        if entry is None:
            alive = sum(e.identity is not None for e in self._clients.values())
            if alive >= self._limits.max_clients:
                reason = f"this daemon serves at most {self._limits.max_clients} clients"
                self._send(identity, Reject("full", reason))
                return None
            entry = self._new_client(hello)
        other = entry.identity is not None and entry.identity != identity
        alive = other and now - entry.heard < DEAD_S
        before = entry.session.connection
        actions = entry.session.receive(hello, peer_alive=alive)
        if entry.session.connection != before or entry.identity is None:
            self._reattach(entry, identity, hello)
        entry.heard = now
        for action in actions:
            if isinstance(action, Send):
                self._send(identity, action.message)
        return entry

    def _new_client(self, hello: Hello) -> ClientEntry:
        self._journal.begin()
        run_id = self._put_run(hello.run)
        row = ClientRow(
            id=0,
            uuid=hello.uuid,
            run_id=run_id,
            rank=hello.rank,
            attempt=hello.attempt,
            pid=hello.pid,
            state="live",
            durable_seq=0,
            dropped=0,
            lost=0,
            rejected=0,
            last_step=None,
        )
        row.id = self._journal.put_client(row)
        entry = ClientEntry(row, ServerSession(self.daemon_id), hello, hello.run)
        entry.session.credit = self._credit()
        self._clients[hello.uuid] = entry
        return entry

    def _reattach(self, entry: ClientEntry, identity: bytes | None, hello: Hello) -> None:
        """The client speaks from another connection now, and may describe its run anew."""
        if entry.identity is not None:
            self._by_identity.pop(entry.identity, None)
        entry.identity = identity
        if identity is not None:
            self._by_identity[identity] = entry
        entry.hello = hello
        entry.row.state = "live"
        entry.changed = True
        if entry.run != hello.run:
            self._journal.begin()
            entry.row.run_id = self._put_run(hello.run)
            entry.run = hello.run
        self._runs[entry.row.run_id].spec = hello.run

    def _put_run(self, spec: RunSpec) -> int:
        run_id = self._journal.put_run(spec)
        self._runs.setdefault(run_id, RunEntry(run_id, spec)).spec = spec
        return run_id

    def _message(self, entry: ClientEntry, message: Message, now: float) -> None:
        entry.session.credit = self._credit()
        if entry.session.reassembling_bytes and self._reassembling() > _REASSEMBLY_BYTES:
            entry.session.disconnected()  # its client sends the record again
        self._act(entry, entry.session.receive(message), now)

    def _act(self, entry: ClientEntry, actions: Iterable[ServerAction], now: float) -> None:
        for action in actions:
            match action:
                case Send(message):
                    if entry.identity is not None:
                        self._send(entry.identity, message)
                case DefineTags(first_id, tag_sets):
                    self._define_tags(entry, first_id, tag_sets)
                case Append():
                    self._append(entry, action, now)
                case CountGap(_first, _last, _reason):
                    self._journal.begin()
                    entry.changed = entry.committing = True
                case Farewell():
                    self._journal.begin()
                    entry.row.state = "finished"
                    entry.changed = True
                    if entry.identity is not None:
                        self._by_identity.pop(entry.identity, None)
                        entry.identity = None

    def _define_tags(
        self, entry: ClientEntry, first_id: int, tag_sets: Sequence[tuple[str, ...]]
    ) -> None:
        if first_id + len(tag_sets) > MAX_TAG_SETS:
            return  # its records are refused then, and counted by the client
        self._journal.begin()
        for id, tags in enumerate(tag_sets, first_id):
            if id not in entry.tag_counts:
                self._journal.put_tag_set(entry.row.id, id, tags)
                entry.tag_counts[id] = len(tags)

    def _append(self, entry: ClientEntry, append: Append, now: float) -> None:
        count = append.last_seq - append.first_seq + 1
        try:
            data, last_step, kinds = check_rows(append.data, entry.tag_counts, append.skip, count)
        except RemoteProtocolError as error:
            self._refused += 1
            self._log(f"refused records of client {entry.row.uuid.hex()}: {error}")
            self._act(entry, entry.session.refuse(append, str(error)), now)
            if entry.identity is None:
                # Nobody is left to announce the gap.
                gap = Gap(append.first_seq, append.last_seq, str(error))
                self._act(entry, entry.session.receive(gap), now)
            return
        self._journal.begin()
        run = self._runs[entry.row.run_id]
        if DERIVED_KIND in kinds and run.derived_row is None:
            run.derived_row = self._journal.last_row
            self._journal.put_cursor(DERIVER, run.id, run.derived_row)
        row = self._journal.append(run.id, entry.row.id, count, data, kinds)
        if DERIVED_KIND in kinds:
            run.to_derive_row = row
        run.records += count
        run.last_step = entry.row.last_step = last_step
        entry.changed = entry.committing = True

    # --- what the daemon itself says -----------------------------------------------------------

    def _inbox_round(self) -> None:
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return
            self._journal.begin()
            if isinstance(item, DaemonPoints):
                self._append_own(item)
            elif self._journal.trim(item):
                self._inbox.put(item)  # the rest of it in another transaction
                return

    def _append_own(self, points: DaemonPoints) -> None:
        run = self._runs.get(points.run_id)
        if run is None:
            return
        if points.derived_row is not None and points.derived_row <= (run.derived_row or 0):
            return  # a deriver that was restarted said it again
        client, tag_sets = self._source(points.run_id, points.source)
        data: list[bytes | bytearray | memoryview] = []
        for step, time_ns, numbers in points.scalars:
            tags = tuple(numbers)
            if tags and tags not in tag_sets:
                tag_sets[tags] = len(tag_sets)
                self._journal.put_tag_set(client.id, tag_sets[tags], tags)
            if tags:
                row = Scalars(tag_sets[tags], step, time_ns, tuple(numbers.values()))
                data.append(encode_scalars(row))
        for value in points.values:
            data += encode_value(value)[1]
        if data:
            count = len(points.scalars) + len(points.values)
            self._journal.append(points.run_id, client.id, count, b"".join(data))
        if points.derived_row is not None:
            self._journal.put_cursor(DERIVER, points.run_id, points.derived_row)
            run.derived_row = points.derived_row

    def _source(self, run_id: int, source: str) -> tuple[ClientRow, dict[tuple[str, ...], int]]:
        found = self._sources.get((run_id, source))
        if found is None:
            uuid = f"{source}/{run_id}".encode()
            client = ClientRow(0, uuid, run_id, 0, 0, 0, "daemon", 0, 0, 0, 0, None)
            client.id = self._journal.put_client(client)
            found = client, self._journal.tag_set_ids(client.id)
            self._sources[run_id, source] = found
        return found

    # --- clients that have gone ----------------------------------------------------------------

    def _adoption_round(self, now: float) -> list[ClientEntry]:
        """Find dead clients' outboxes, and read a little of the first one."""
        if self._scan_wanted.is_set() or now >= self._next_scan:
            self._scan_wanted.clear()
            self._next_scan = now + _SCAN_S
            known = {adoption.path for adoption in self._adoptions}
            for found in find_dead(self._outbox_dirs, known, self._log):
                self._adoptions.append(found)
            self._scans += 1
        if not self._adoptions:
            return []
        adoption = self._adoptions[0]
        entry = self._clients.get(adoption.hello.uuid) or self._new_client(adoption.hello)
        if not adoption.greeted:
            adoption.greeted = True
            entry.session.receive(adoption.greeting(entry.session.connection))
            self._reattach(entry, None, adoption.hello)
        for message in adoption.take(_ROUND_BYTES):
            self._message(entry, message, now)
        if adoption.exhausted:
            session = entry.session
            session.books = adoption.books(session.taken_seq, session.taken_dropped)
            if entry.row.state != "finished":
                entry.row.state = "lost"
            entry.changed = True
            self._journal.begin()
        return [entry]

    def _finish_adoptions(self) -> None:
        """After the commit: an outbox that was read to its end is no longer needed."""
        if self._adoptions and self._adoptions[0].exhausted:
            adoption = self._adoptions.popleft()
            self._log(f"adopted the outbox of a client of run {adoption.hello.run.name!r} that has gone")
            adoption.remove()

    def _liveness(self, now: float) -> None:
        """Clients that are silent, and whose outbox no scan will find."""
        for entry in self._clients.values():
            if entry.row.state != "live" or now - entry.heard < DEAD_S:
                continue
            if entry.identity is not None:
                self._by_identity.pop(entry.identity, None)
                entry.identity = None
                entry.session.disconnected()
            if not entry.hello.outbox and now - entry.heard >= 2 * DEAD_S:
                self._journal.begin()
                entry.row.state = "lost"
                entry.changed = True

    def _store_clients(self) -> None:
        for entry in self._clients.values():
            if not entry.changed:
                continue
            self._journal.begin()
            session, row = entry.session, entry.row
            row.durable_seq, row.dropped = session.taken_seq, session.taken_dropped
            row.lost = max(0, session.books.dropped - session.taken_dropped)
            row.rejected = session.books.rejected
            self._journal.put_client(row)
            entry.changed = False

    # --- storage, sending, publishing ----------------------------------------------------------

    def _storage_failed(self, error: sqlite3.Error, now: float) -> None:
        """The disk is full or worse: undo, stop the clients' sending, and try again."""
        if self._storage_error is None:
            self._log(f"the journal cannot be written ({error}): clients hold their records")
        self._storage_error = str(error)
        self._storage_retry = now + _STORAGE_RETRY_S
        try:
            self._journal.rollback()
        except sqlite3.Error:
            pass  # the same trouble; reading goes on all the same
        self._forget()
        self._publish()
        self._stopping.wait(0.05)

    def _forget(self) -> None:
        """Know only what the journal knows; clients that go on will introduce themselves again."""
        for adoption in self._adoptions:
            adoption.close()
        self._adoptions.clear()
        self._clients.clear()
        self._by_identity.clear()
        self._sources.clear()
        self._runs.clear()
        try:
            self._load()
        except sqlite3.Error as error:
            self._storage_error = str(error)

    def _credit(self) -> int:
        if self._storage_error is not None and time.monotonic() < self._storage_retry:
            return 0
        return self._limits.credit_bytes

    def _reassembling(self) -> int:
        return sum(entry.session.reassembling_bytes for entry in self._clients.values())

    def _send(self, identity: bytes, message: Message) -> None:
        try:
            self._socket.send_multipart([identity, encode(message)], zmq.DONTWAIT)
        except (zmq.ZMQError, LocalProtocolError):
            pass  # it has gone, or does not read: it will ask again

    def _publish(self) -> None:
        self.snapshot = Snapshot(
            self._journal.last_row,
            dict(self._journal.totals),
            dict(self._runs),
            tuple(self._clients.values()),
            self._storage_error,
            len(self._adoptions),
            self._scans,
            self._refused,
        )



"""Who speaks to this daemon: the clients' sessions, and what they have the journal do.

Lives in ingest's thread. Everything here happens inside the transaction of one round; what a
session says to its client goes out through `send`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from sidestep.proto import (
    Alarm,
    Hello,
    Message,
    Nack,
    Reject,
    RunSpec,
    ServerSession,
    Value,
    Welcome,
)
from sidestep.proto.session import (
    DEAD_S,
    Append,
    CountGap,
    DefineTags,
    Farewell,
    Send,
    ServerAction,
)

from ..alarms import State, TagState, states_of
from ..journal.derive_state import derive_state
from ..journal.resume import Trail
from ..journal.trails import stored_trails
from ..journal.writer import ClientRow, Journal
from ..peers.refusals import Refusals
from . import books
from .admission import rejection, why_back, why_not
from .attempts import Attempts, outbox_is_here
from .client_books import put_books, stored_books
from .intake import Intake
from .introductions import lasting, put_introduction, stored_introductions
from .pace import pace_ms
from .published import Published
from .roster import DERIVED_KINDS, DERIVER, NODE, ClientEntry, Limits, RunEntry
from .worlds import stored_worlds

_LOOK_S: Final = 0.25
_REASSEMBLY_BYTES: Final = 256 << 20
"""Memory for records that are coming in parts, of all clients together."""


class Clients:
    """All clients that this daemon knows, dead or alive.

    Args:
        journal: the writing end.
        daemon_id: random number of this daemon's process.
        limits: what to grant.
        send: puts a message on the wire to a connection.
        purge: journals a purge of a run at a step.
        log: says something to the daemon's log.
        refusals: where what is refused is counted.
    """

    def __init__(
        self,
        journal: Journal,
        daemon_id: int,
        limits: Limits,
        send: Callable[[bytes, Message], None],
        purge: Callable[[RunEntry, int], None],
        log: Callable[[str], None],
        refusals: Refusals,
    ) -> None:
        self._journal = journal
        self._daemon_id = daemon_id
        self._limits = limits
        self._send = send
        self._log = log
        self._refusals = refusals
        self._clients: dict[bytes, ClientEntry] = {}
        self._by_identity: dict[bytes, ClientEntry] = {}
        self._welcomes: list[tuple[ClientEntry, bytes, Welcome]] = []  # of this round
        passes_on = limits.passes_on
        self.runs: dict[int, RunEntry] = {}
        self.attempts = Attempts(
            journal, self._clients, self.runs, None if passes_on else purge, log
        )
        self.published = Published(self._clients, self.runs)
        self._next_look = 0.0
        derived = frozenset[str]() if passes_on else DERIVED_KINDS
        self._intake = Intake(
            journal, self._clients, self.runs, self.attempts, refusals, self._act, derived
        )
        self._identity = journal.identity()
        self.credit = limits.credit_bytes

    def load(self) -> None:
        """What an earlier daemon knew of its clients: dead or alive, their numbers count."""
        for run_id, spec in self._journal.runs().items():
            self.runs[run_id] = RunEntry(run_id, spec)
        derived = {} if self._limits.passes_on else self._journal.cursors(DERIVER)
        for run_id, row in derived.items():
            self.runs[run_id].derived_row = row
            self.runs[run_id].derived = derive_state(self._journal.connection, run_id)
            self.runs[run_id].to_derive_row = self._journal.newest_row_with(run_id, DERIVED_KINDS)
            self.runs[run_id].alarms = states_of(self._journal.alarm_states(run_id))
        trails = stored_trails(self._journal.connection)
        stored = stored_books(self._journal.connection)
        introduced = stored_introductions(self._journal.connection)
        worlds = stored_worlds(self._journal.connection)
        for client in self._journal.clients():
            run = self.runs[client.run_id]
            if client.state == "daemon":
                continue
            if client.state != NODE:
                if client.last_step is not None:
                    run.last_step = client.last_step
                run.records += client.durable_seq - client.dropped
            session = ServerSession(self._daemon_id, client.durable_seq, client.dropped)
            known = introduced.get(client.id) or Hello(client.uuid, 0, 0, run.spec, client.rank)
            hello = replace(known, run=run.spec)
            entry = ClientEntry(client, session, hello, run.spec, heard=time.monotonic())
            entry.introduced = introduced.get(client.id)
            books.restore(entry, stored.get(client.id))
            entry.changed = False
            entry.trail = trails.get(client.id) or Trail(attempt=1, changed=False)
            entry.tag_counts = self._journal.tag_counts(client.id)
            entry.reduced = self._journal.reduced_tag_sets(client.id)
            entry.world = worlds.get(client.id, 0)
            self._clients[client.uuid] = entry
        self.published.forget()

    def forget(self) -> None:
        """After a failed transaction: know only what the journal knows, and what clients have said.

        Clients that go on are told to introduce themselves again.
        """
        said = {uuid: entry.session.books for uuid, entry in self._clients.items()}
        self._clients.clear()
        self._by_identity.clear()
        self.runs.clear()
        self._welcomes.clear()
        self.attempts.forget()
        self.load()
        for uuid, entry in self._clients.items():
            entry.session.books = said.get(uuid, entry.session.books)

    def receive(self, identity: bytes, message: Message, now: float) -> ClientEntry | None:
        """A message came over a connection; whose it was, if that is known."""
        if isinstance(message, Hello):
            return self._hello(identity, message, now)
        entry = self._by_identity.get(identity)
        if entry is None:
            self._send(identity, Nack("unknown_session", "say HELLO first"))
            return None
        entry.heard = now
        self.published.touch(entry)
        self.handle(entry, message)
        return entry

    def adopt(self, hello: Hello) -> ClientEntry:
        """The client that `hello` introduces, which has gone: the daemon speaks for it."""
        entry = self._clients.get(hello.uuid) or self._new_client(hello)
        # As one more connection of it, after all of its own.
        entry.session.receive(replace(hello, connection=max(0, entry.session.connection) + 1))
        self.published.touch(entry)
        self._reattach(entry, None, hello)
        return entry

    def committed(self, entry: ClientEntry) -> None:
        """What this client sent is durable: tell it."""
        self.published.touch(entry)
        entry.committing = False
        self._act(entry, entry.session.committed())

    def alarm(self, run_id: int, value: Value) -> None:
        """A representation of the run went from one state to another: tell its clients."""
        info = value.info
        self._tell(
            run_id,
            Alarm(str(info["representation"]), str(info["state"]), value.step, str(info["reason"])),
        )

    def pass_alarm(self, run_id: int, alarm: Alarm) -> None:
        """The daemon that derives for this one says how a representation of the run stands."""
        run = self.runs.get(run_id)
        if run is None:
            return
        with suppress(ValueError):  # a state that only a newer one knows: its clients may
            state = TagState(state=State(alarm.state), changed_step=alarm.step, reason=alarm.reason)
            run.alarms = {**run.alarms, alarm.tag: state}
            self.published.touch_run(run_id)
        self._tell(run_id, alarm)

    def _tell(self, run_id: int, alarm: Alarm) -> None:
        for entry in self._clients.values():
            if entry.identity is not None and entry.row.run_id == run_id:
                self._send(entry.identity, alarm)

    def settle(self, adopting: Collection[RunSpec], now: float) -> list[ClientEntry]:
        """Give credit to new clients, once all that was there before them is known.

        Args:
            adopting: runs of dead clients whose outboxes are still being read.
            now: monotonic time.
        """
        runs = {(s.name, s.log_dir) for s in adopting}
        # While the disk is full nobody has looked yet who is dead.
        settled = [] if self.attempts.scan_wanted else list(self.attempts.settle(runs, now))
        for entry in settled:
            self.published.touch(entry)
            entry.session.credit = self.credit
        for entry, identity, welcome in self._welcomes:
            self._send(identity, replace(welcome, credit=entry.session.credit))
            self._tell_alarms(identity, self.runs[entry.row.run_id])
            settled = [other for other in settled if other is not entry]
        self._welcomes.clear()
        for entry in settled:
            entry.committing = True  # the acknowledgement says what its welcome did not
        return settled

    def look_after(self, now: float) -> None:
        """Now and then: clients that are silent, and whose outbox no scan will find."""
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_S
        for entry in self._clients.values():
            living = entry.row.state == "live" or (entry.row.state == NODE and entry.identity)
            if not living or now - entry.heard < DEAD_S:
                continue
            self.published.touch(entry)
            if entry.identity is not None:
                self._by_identity.pop(entry.identity, None)
                entry.identity = None
                entry.session.disconnected()
            if entry.row.state == NODE:
                continue
            if now - entry.heard >= 2 * DEAD_S and not outbox_is_here(entry):
                self._journal.begin()
                entry.row.state = "lost"
                entry.changed = True

    def store(self) -> None:
        """Write what has changed of the clients into this round's transaction."""
        for entry in self.published.touched():
            if not entry.changed:
                continue
            self._journal.begin()
            session, row = entry.session, entry.row
            row.durable_seq, row.dropped = session.taken_seq, session.taken_dropped
            row.lost = max(0, session.books.dropped - session.taken_dropped)
            row.rejected = session.books.rejected
            self._journal.put_client(row)
            if (rest := books.stored(entry)) is not None:
                put_books(self._journal.connection, row.id, *rest)
            entry.changed = False
        self.attempts.store()

    def _hello(self, identity: bytes, hello: Hello, now: float) -> ClientEntry | None:
        entry = self._clients.get(hello.uuid)
        # Of one that came in a circle, the client itself may be connected here.
        reject = why_back(hello, self._identity)
        if reject is None and (entry is None or entry.identity is None):
            connected = sum(e.identity is not None for e in self._clients.values())
            reject = why_not(hello, connected, self._limits)
        if reject is not None:
            self._reject(identity, hello, reject)
            return None
        entry = entry or self._new_client(hello)
        self.published.touch(entry)
        self.attempts.greet(entry, now)
        entry.session.credit = self.attempts.credit(entry, self.credit)
        other = entry.identity is not None and entry.identity != identity
        alive = other and now - entry.heard < DEAD_S
        before = entry.session.connection
        actions = entry.session.receive(hello, peer_alive=alive)
        reject = rejection(actions)
        if reject is not None:
            self._reject(identity, hello, reject)
            return None
        if entry.session.connection != before or entry.identity is None:
            self._reattach(entry, identity, hello)
        entry.heard = now
        for action in actions:
            if isinstance(action, Send) and isinstance(action.message, Welcome):
                self._welcomes.append((entry, identity, action.message))
            elif isinstance(action, Send):
                self._send(identity, action.message)
        return entry

    def _reject(self, identity: bytes, hello: Hello, reject: Reject) -> None:
        """Say so, and forget it."""
        who = f"process {hello.pid} for run {hello.run.name!r:.100}"
        self._refusals.note("client", reject.code, reject.reason, who=who)
        self._send(identity, reject)

    def _tell_alarms(self, identity: bytes, run: RunEntry) -> None:
        """How things stand, to a client that may have missed it; it tells what it knows already."""
        for tag, state in run.alarms.items():
            if state.reason:
                message = Alarm(tag, state.state.value, state.changed_step, state.reason)
                self._send(identity, message)

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
            state=NODE if hello.node else "live",
            durable_seq=0,
            dropped=0,
            lost=0,
            rejected=0,
            last_step=None,
        )
        row.id = self._journal.put_client(row)
        entry = ClientEntry(row, ServerSession(self._daemon_id), hello, hello.run)
        entry.session.credit = self.credit
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
        # A full disk is no reason not to speak to a client of which nothing new is to be stored.
        taken = entry.session.taken_seq, entry.session.taken_dropped
        state = NODE if hello.node else "live"
        known = entry.row.state == state and taken == (entry.row.durable_seq, entry.row.dropped)
        entry.changed = entry.changed or not known
        entry.row.state = state
        if (introduced := lasting(hello)) != entry.introduced:
            self._journal.begin()
            put_introduction(self._journal.connection, entry.row.id, introduced)
            entry.introduced = introduced
        if entry.run != hello.run:
            self._journal.begin()
            entry.row.run_id = self._put_run(hello.run)
            entry.run = hello.run
        self.runs[entry.row.run_id].spec = hello.run

    def _put_run(self, spec: RunSpec) -> int:
        run_id = self._journal.put_run(spec)
        self.runs.setdefault(run_id, RunEntry(run_id, spec)).spec = spec
        return run_id

    def handle(self, entry: ClientEntry, message: Message) -> None:
        """Do what the client's session makes of `message`."""
        entry.session.credit = self.attempts.credit(entry, self.credit)
        entry.session.pace_ms = pace_ms(len(self._by_identity))
        if entry.session.reassembling_bytes and self._reassembling() > _REASSEMBLY_BYTES:
            entry.session.disconnected()  # its client sends the record again
        self._act(entry, entry.session.receive(message))

    def _act(self, entry: ClientEntry, actions: Iterable[ServerAction]) -> None:
        for action in actions:
            match action:
                case Send(message):
                    if entry.identity is not None:
                        self._send(entry.identity, message)
                case DefineTags(first_id, tag_sets):
                    self._intake.define_tags(entry, first_id, tag_sets)
                case Append():
                    self._intake.append(entry, action)
                case CountGap(_first, _last, _reason):
                    self._journal.begin()
                    entry.changed = entry.committing = True
                case Farewell(lost):
                    self._journal.begin()
                    if entry.row.state != NODE:
                        entry.row.state = "lost" if lost else "finished"
                    entry.changed = True
                    if entry.identity is not None:
                        self._by_identity.pop(entry.identity, None)
                        entry.identity = None

    def _reassembling(self) -> int:
        return sum(entry.session.reassembling_bytes for entry in self._clients.values())

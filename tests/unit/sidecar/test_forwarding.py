"""Passing on: over bad links, whoever is killed when, the next daemon has all of it, once.

`World` is a node's journal, what passes it on, and the next daemon, in one simulation: all that
they say travels as frames, over links that lose, repeat and delay. Rows leave the node's journal as
they do in truth, when the stored cursor has passed them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sidestep.proto import (
    Array,
    Batch,
    Books,
    Gap,
    Hello,
    Message,
    Nack,
    Part,
    Reject,
    RemoteProtocolError,
    RunSpec,
    Scalars,
    ServerSession,
    Tags,
    Value,
    decode,
    encode,
)
from sidestep.proto.limits import MAX_DATA_BYTES, MAX_SMALL_RECORD_BYTES
from sidestep.proto.records import SCALARS, decode_scalars, encode_scalars, encode_value, walk
from sidestep.proto.session import (
    Append,
    CountGap,
    DefineTags,
    Farewell,
    Send,
    ServerAction,
)
from sidestep.proto.tag_sets import ReducedTags, reduction_of
from sidestep.sidecar.forwarding.crossing import FINAL
from sidestep.sidecar.forwarding.delivery import Delivery
from sidestep.sidecar.forwarding.passage import Passage
from sidestep.sidecar.forwarding.passengers import Passenger
from sidestep.sidecar.forwarding.units import left_out, tags_messages, units_of
from sidestep.sidecar.ingest.roster import NODE
from sidestep.sidecar.journal.reader import Row
from sidestep.sidecar.supervision.cursor_file import Cursor

STEP_S = 0.05
SETTLE_S = 90.0
POISON = -1.0


@dataclass
class Link:
    """Frames to one side, each with the time at which it arrives."""

    random: random.Random
    loss: float = 0.0
    repeat: float = 0.0
    delay_s: float = 0.0
    due: list[tuple[float, int, Connection, bytes]] = field(default_factory=list)
    sent: int = 0
    last_at: dict[Connection, float] = field(default_factory=dict)

    def send(self, connection: Connection, message: Message, now: float) -> None:
        frame = encode(message)
        for _ in range(1 + (self.random.random() < self.repeat)):
            if self.random.random() >= self.loss:
                self.sent += 1
                at = now + self.random.random() * self.delay_s
                # What one connection carries stays in order; another one's may overtake it.
                at = self.last_at[connection] = max(at, self.last_at.get(connection, 0.0))
                self.due.append((at, self.sent, connection, frame))

    def arrived(self, now: float) -> Iterator[tuple[Connection, Message]]:
        self.due.sort(key=lambda one: one[:2])
        while self.due and self.due[0][0] <= now:
            _, _, connection, frame = self.due.pop(0)
            yield connection, decode(frame)


@dataclass(eq=False)
class Connection:
    """One client's connection; thrown away with whoever had it."""

    delivery: Delivery | None = None
    uuid: bytes | None = None


@dataclass
class Client:
    """What the node's journal knows of a client, and what it emitted."""

    id: int
    uuid: bytes
    state: str = "live"
    seq: int = 0
    dropped: int = 0
    tag_sets: list[tuple[str, ...]] = field(default_factory=list)
    records: dict[int, bytes] = field(default_factory=dict)
    gaps: set[int] = field(default_factory=set)
    damaged: set[int] = field(default_factory=set)

    def books(self) -> Books:
        return Books(self.seq, self.dropped)


@dataclass
class Known:
    """What the next daemon has of a client on its disk."""

    durable_seq: int = 0
    dropped: int = 0
    records: dict[int, bytes] = field(default_factory=dict)
    gaps: set[int] = field(default_factory=set)
    state: str = ""
    books: Books = field(default_factory=Books)


class Head:
    """What ingest does around its sessions."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.disk: dict[bytes, Known] = {}
        self.restart()

    def restart(self) -> None:
        self.sessions: dict[bytes, ServerSession] = {}
        self.tags: dict[bytes, dict[int, tuple[str, ...]]] = {}
        self.taken: dict[bytes, list[tuple[int, bytes | None]]] = {}
        self.connections: dict[Connection, bytes] = {}
        self.farewells: dict[bytes, bool] = {}

    def receive(self, connection: Connection, message: Message) -> None:
        if isinstance(message, Hello):
            uuid = message.uuid
            known = self.disk.setdefault(uuid, Known())
            if uuid not in self.sessions:
                self.sessions[uuid] = ServerSession(7, known.durable_seq, known.dropped)
                self.tags[uuid] = {}
            session = self.sessions[uuid]
            before = session.connection
            session.credit = self.world.credit
            actions = session.receive(message)
            if session.connection != before:  # else it is an old one that was delayed
                self.connections = {c: u for c, u in self.connections.items() if u != uuid}
                self.connections[connection] = uuid
                known.state = NODE if message.node else "live"
                known.durable_seq = session.durable_seq  # perhaps it was known elsewhere
        elif connection not in self.connections:
            self.say(connection, Nack("unknown_session", "say HELLO first"))
            return
        else:
            uuid = self.connections[connection]
            session = self.sessions[uuid]
            session.credit = self.world.credit
            actions = session.receive(message)
        self.do(connection, uuid, actions)

    def commit(self) -> None:
        for connection, uuid in list(self.connections.items()):
            session, known = self.sessions[uuid], self.disk[uuid]
            taken = self.taken.pop(uuid, [])
            if not taken:
                continue
            for seq, data in taken:
                assert seq == known.durable_seq + 1, f"record {seq} after {known.durable_seq}"
                if data is None:
                    known.gaps.add(seq)
                else:
                    known.records[seq] = data
                known.durable_seq = seq
            actions = session.committed()
            known.dropped = session.dropped
            assert session.durable_seq == known.durable_seq
            self.do(connection, uuid, actions)
        for uuid, lost in self.farewells.items():
            self.disk[uuid].state = "lost" if lost else "finished"
            self.disk[uuid].books = self.sessions[uuid].books
        self.farewells.clear()

    def do(self, connection: Connection, uuid: bytes, actions: list[ServerAction]) -> None:
        for action in actions:
            match action:
                case Send(message):
                    self.say(connection, message)
                case DefineTags(first, tag_sets):
                    self.tags[uuid].update(enumerate(tag_sets, first))
                case Append():
                    self.append(connection, uuid, action)
                case CountGap(first, last):
                    gaps = [(seq, None) for seq in range(first, last + 1)]
                    self.taken.setdefault(uuid, []).extend(gaps)
                case Farewell(lost):
                    self.farewells[uuid] = lost

    def append(self, connection: Connection, uuid: bytes, append: Append) -> None:
        data = bytes(append.data)
        for seq, (at, length, kind) in enumerate(list(walk(data))[append.skip :], append.first_seq):
            rest = replace(append, first_seq=seq)
            record = data[at : at + length]
            if kind == SCALARS:
                scalars = decode_scalars(record)
                if scalars.values == (POISON,):
                    refused = self.sessions[uuid].refuse(replace(rest, last_seq=seq), "poison")
                    self.do(connection, uuid, refused)
                    return
                if scalars.tag_set not in self.tags[uuid]:
                    self.do(connection, uuid, self.sessions[uuid].undefined(rest))
                    return
            self.taken.setdefault(uuid, []).append((seq, record))

    def say(self, connection: Connection, message: Message) -> None:
        self.world.down.send(connection, message, self.world.now)


class World:
    """A node's journal, what passes it on, the next daemon, and the time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1.0
        self.up, self.down = Link(self.random), Link(self.random)
        self.credit = 4000
        self.clients: dict[int, Client] = {}
        self.rows: list[Row] = []
        self.last_row = self.total = 0
        self.stored = Cursor(state={"closed": False}, journal=5)
        self.head = Head(self)
        self.generation = 0
        self.start()

    # --- what happens --------------------------------------------------------------------------

    def join(self, node: bool = False) -> None:
        number = len(self.clients) + 1
        state = NODE if node else "live"
        self.clients[number] = Client(number, number.to_bytes(16, "big"), state)

    def emit(self, which: int, count: int, new_tags: bool = False) -> None:
        client = self._one(which)
        if client is None:
            return
        if new_tags or not client.tag_sets:
            number = len(client.tag_sets)
            reduced = bool(number % 2)
            tags = (f"tag{number}",)
            client.tag_sets.append(ReducedTags(tags, "mean") if reduced else tags)
        tag_set = len(client.tag_sets) - 1
        first = client.seq + 1
        records = [encode_scalars(Scalars(tag_set, first + n, 0, (1.0,))) for n in range(count)]
        self._append(client, records)

    def emit_large(self, which: int, nbytes: int) -> None:
        client = self._one(which)
        if client is not None:
            value = Value("blob", "tag", 0, 0, {}, [Array("uint8", (nbytes,), bytes(nbytes))])
            self._append(client, [b"".join(encode_value(value)[1])])

    def emit_poison(self, which: int) -> None:
        """A record that the next daemon can never take."""
        client = self._one(which)
        if client is not None and client.tag_sets:
            good = encode_scalars(Scalars(0, 1, 0, (1.0,)))
            bad = encode_scalars(Scalars(0, 1, 0, (POISON,)))
            client.damaged.add(client.seq + 2)
            self._append(client, [good, bad, good])

    def drop(self, which: int, count: int) -> None:
        """The client says a gap."""
        client = self._one(which)
        if client is not None and client.state != NODE:
            client.gaps.update(range(client.seq + 1, client.seq + count + 1))
            client.seq += count
            client.dropped += count

    def damage(self) -> None:
        """A bit flips in the newest row, if nobody has read it yet."""
        if self.rows and self.rows[-1].id > self.passage.read_row and not self.rows[-1].damaged:
            row = self.rows[-1]
            assert row.first_seq is not None
            client = self.clients[row.client_id]
            client.damaged.update(range(row.first_seq, row.first_seq + row.records))
            self.rows[-1] = replace(row, data=b"", first_seq=None, damaged=True)

    def end(self, which: int, state: str) -> None:
        client = self._one(which)
        if client is not None and client.state == "live":
            client.state = state

    def come_back(self, which: int) -> None:
        """Who was silent for too long was taken for lost."""
        if self.clients:
            client = list(self.clients.values())[which % len(self.clients)]
            if client.state == "lost":
                client.state = "live"

    def kill_worker(self) -> None:
        self.start()

    def kill_head(self) -> None:
        """With it go its connections, and what was under way on them."""
        self.head.restart()
        self.up.due.clear()
        self.down.due.clear()

    def set_links(self, loss: float, repeat: float, delay_s: float) -> None:
        for link in (self.up, self.down):
            link.loss, link.repeat, link.delay_s = loss, repeat, delay_s

    def set_credit(self, credit: int) -> None:
        self.credit = credit

    # --- how it goes on ------------------------------------------------------------------------

    def start(self) -> None:
        """A worker begins, with what the last one has stored."""
        self.connections: dict[int, Connection] = {}
        self.generation += 1000
        self.passage = Passage(self.stored, self._deliver)

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now += STEP_S
            self.step()

    def step(self) -> None:
        passengers = {c.id: self._passenger(c) for c in self.clients.values()}
        books = {c.id: c.books() for c in self.clients.values()}
        self.passage.look(passengers, books)
        while rows := [row for row in self.rows if row.id > self.passage.read_row][:3]:
            assert not self.passage.unknown(rows)
            self.passage.take(rows)
        self.passage.no_more_rows()
        kept = {id(delivery) for delivery in self.passage.deliveries}
        self.connections = {n: c for n, c in self.connections.items() if n in kept}
        for delivery in self.passage.deliveries:
            if delivery.reconnect_at is not None and delivery.reconnect_at <= self.now:
                self.connections[id(delivery)] = Connection(delivery)
                delivery.connected(self.now)
            delivery.work(self.now)
        for connection, message in self.up.arrived(self.now):
            self.head.receive(connection, message)
        self.head.commit()
        for connection, message in self.down.arrived(self.now):
            if connection in self.connections.values() and connection.delivery is not None:
                connection.delivery.receive(message, self.now)
        self.passage.advance(self.now, goodbyes=True)
        if self.random.random() < 0.3:
            self._store()

    def settle(self) -> None:
        """From now on nothing fails: everything must arrive, and everybody say goodbye."""
        self.set_links(0.0, 0.0, 0.0)
        self.credit = 4000
        for client in self.clients.values():
            if client.state == "live":
                client.state = "finished"
        until = self.now + SETTLE_S
        self.run(STEP_S)
        while not (self.passage.empty and self.passage.cursor.row == self.last_row):
            assert self.now < until, f"not over: {vars(self.passage)}"
            self.run(STEP_S)
        self._store()
        assert self.stored.state is not None
        assert self.stored.state["closed"] is True

    def check(self) -> None:
        """The next daemon has what the node's journal had, once, and knows the same books."""
        assert self.stored.total == self.total
        for client in self.clients.values():
            if client.state == NODE and not client.seq:
                continue
            known = self.head.disk[client.uuid]
            assert known.records == {
                seq: data for seq, data in client.records.items() if seq not in client.damaged
            }
            assert known.gaps == client.gaps | client.damaged
            assert known.durable_seq == client.seq
            if client.state != NODE:
                assert known.state == client.state
                assert known.books.emitted == client.seq
                assert known.books.dropped == len(known.gaps)

    # --- inside --------------------------------------------------------------------------------

    def _one(self, which: int) -> Client | None:
        speaking = [c for c in self.clients.values() if c.state in ("live", NODE)]
        return speaking[which % len(speaking)] if speaking else None

    def _append(self, client: Client, records: list[bytes]) -> None:
        first = client.seq + 1
        client.records.update(enumerate(records, first))
        client.seq += len(records)
        self.last_row += 1
        self.total += len(records)
        data = b"".join(records)
        row = Row(self.last_row, client.id, len(records), self.total, data, first)
        self.rows.append(row)

    def _passenger(self, client: Client) -> Passenger:
        hello = Hello(client.uuid, 9, 0, RunSpec("", ""), node=client.state == NODE)
        return Passenger(client.id, client.state, client.seq, client.dropped, hello, client.books())

    def _deliver(self, passenger: Passenger, acked: tuple[int, int]) -> Delivery:
        self.generation += 1000
        hello = replace(
            passenger.hello,
            run=RunSpec("r", "/l"),
            connection=self.generation,
            acked_seq=acked[0],
            acked_dropped=acked[1],
        )
        client = self.clients[passenger.id]
        found: list[Delivery] = []

        def send(message: Message) -> bool:
            connection = self.connections.get(id(found[0]))
            if connection is None or self.random.random() < 0.02:
                return False  # its queue is full
            self.up.send(connection, message, self.now)
            return True

        def define(first: int) -> Iterator[Tags]:
            return tags_messages(list(enumerate(client.tag_sets))[first:])

        found.append(Delivery(hello, define, send, self.random.random))
        found[0].reconnect_at = self.now
        return found[0]

    def _store(self) -> None:
        self.stored = self.passage.cursor
        for row in self.rows:
            if row.id <= self.stored.row and not row.damaged:
                known = self.head.disk[self.clients[row.client_id].uuid]
                assert row.first_seq is not None
                assert known.durable_seq >= row.first_seq + row.records - 1, "it leaves too early"
        self.rows = [row for row in self.rows if row.id > self.stored.row]


_WHICH = st.integers(0, 9)
_LITTLE = st.floats(0.0, 0.375, width=16)


Event = tuple[object, ...]
"""What happens: a method of `World`, and its arguments."""


def _event(name: str, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Event]:
    return st.tuples(st.just(name), *arguments)


EVENTS = st.one_of(
    _event("run", st.sampled_from([0.05, 0.5, 2.5, 6.0])),
    _event("join", st.sampled_from([False, False, False, True])),
    _event("emit", _WHICH, st.integers(1, 30), st.booleans()),
    _event("emit", _WHICH, st.integers(1, 30), st.just(False)),
    _event("emit_large", _WHICH, st.sampled_from([100, MAX_SMALL_RECORD_BYTES, 200_000])),
    _event("emit_poison", _WHICH),
    _event("drop", _WHICH, st.integers(1, 20)),
    _event("damage"),
    _event("end", _WHICH, st.sampled_from(["finished", "lost"])),
    _event("come_back", _WHICH),
    _event("kill_worker"),
    _event("kill_head"),
    _event("set_links", _LITTLE, _LITTLE, st.sampled_from([0.0, 0.3, 2.0])),
    _event("set_credit", st.sampled_from([0, 1, 500, 100_000])),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1), events=st.lists(EVENTS, min_size=5, max_size=40))
def test_everything_arrives_once_whoever_is_killed(seed: int, events: list[Event]) -> None:
    world = World(seed)
    world.join()
    for name, *arguments in events:
        getattr(world, str(name))(*arguments)
        world.run(0.1)
    world.settle()
    world.check()


def test_units_are_small_batches_and_parts_of_large_records() -> None:
    small = [encode_scalars(Scalars(0, n, 0, (1.0,))) for n in range(3)]
    value = Value("blob", "t", 0, 0, {}, [Array("uint8", (3 << 20,), bytes(3 << 20))])
    large = b"".join(encode_value(value)[1])
    (one,) = units_of(5, 3, b"".join(small))
    assert one.messages == (Batch(5, 7, b"".join(small)),)
    before, parts, after = units_of(5, 4, b"".join([*small[:2], large, small[2]]))
    assert (before.first, before.last, parts.first, parts.last) == (5, 6, 7, 7)
    assert (after.first, after.last) == (8, 8)
    found = b"".join(bytes(m.data) for m in parts.messages if isinstance(m, Part))
    assert found == large
    assert all(isinstance(m, Part) and len(m.data) <= MAX_DATA_BYTES for m in parts.messages)
    many = small[0] * (2 * MAX_DATA_BYTES // len(small[0]))
    batches = list(units_of(1, len(many) // len(small[0]), many))
    assert [b.first for b in batches[1:]] == [b.last + 1 for b in batches[:-1]]
    for unit in batches:
        encode(unit.messages[0])
    with pytest.raises(RemoteProtocolError, match="not 9 records"):
        list(units_of(1, 9, large))


def test_what_is_refused_is_cut_out_of_its_batch() -> None:
    record = encode_scalars(Scalars(0, 1, 0, (1.0,)))
    (unit,) = units_of(1, 5, record * 5)
    parts = list(left_out([unit], 2, 3, "bad"))
    assert [(p.first, p.last, p.nbytes) for p in parts] == [
        (1, 1, len(record)),
        (2, 3, 0),
        (4, 5, 2 * len(record)),
    ]
    assert parts[1].messages == (Gap(2, 3, "bad"),)


def test_tag_sets_keep_their_numbers_and_their_reductions() -> None:
    sets = [(0, ("a",)), (1, ReducedTags(("b",), "mean")), (3, ("c", "d"))]
    found: dict[int, tuple[str, ...]] = {}
    for message in tags_messages(sets):
        heard = decode(encode(message))
        assert isinstance(heard, Tags)
        found.update(enumerate(heard.tag_sets, heard.first_id))
    assert found == dict(sets)
    assert reduction_of(found[1]) == "mean"


def test_a_run_of_which_rows_have_left_before_is_passed_on_from_there() -> None:
    """The setting came later than the run: what was written here is announced as no gap."""
    world = World(1)
    world.join()
    world.join()
    world.emit(0, 10)
    world.end(1, "finished")
    world.rows.clear()
    world.stored = Cursor(1, 10, {"closed": False}, 5)
    world.start()
    world.emit(0, 5)
    world.settle()
    known = world.head.disk[world.clients[1].uuid]
    assert sorted(known.records) == [11, 12, 13, 14, 15]
    assert not known.gaps
    assert world.clients[2].uuid not in world.head.disk


def test_a_circle_and_a_daemon_of_another_version_end_it() -> None:
    delivery = Delivery(Hello(bytes(16), 1, 1, RunSpec("r", "/l")), lambda _: (), bool, lambda: 0.5)
    delivery.connected(1.0)
    delivery.receive(Reject("loop", "in a circle"), 1.1)
    assert delivery.rejected is not None
    assert delivery.rejected.code in FINAL
    delivery.begin_again(1000, 2.0)
    assert delivery.rejected is None
    assert delivery.reconnect_at == 2.0

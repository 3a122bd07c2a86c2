"""A trainer and a daemon in one simulation: every event goes through both ends of the protocol.

`Pair` owns a simulated clock, a `Link` that may lose, repeat, delay and reorder frames, a
`Trainer` (what an outbox and a sender do around `ClientSession`) and a `Daemon` (what ingest and a
journal do around `ServerSession`, on a disk that may fail and a process that may die). All that
they say travels as frames. While it runs, and when it has settled, the pair compares what was
journalled with what was emitted.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass, field, replace

from sidestep.proto import (
    Array,
    Batch,
    Books,
    ClientSession,
    Gap,
    Hello,
    Message,
    Nack,
    Part,
    RunSpec,
    Scalars,
    ServerSession,
    Tags,
    Value,
    decode,
    encode,
)
from sidestep.proto.records import (
    SCALARS,
    decode_scalars,
    encode_scalars,
    encode_value,
    walk,
)
from sidestep.proto.session import (
    Append,
    ClientAction,
    ClientEvent,
    ClientState,
    CountGap,
    DefineTags,
    Durable,
    Farewell,
    Reconnect,
    Refused,
    Rejected,
    Send,
    ServerAction,
)

STEP_S = 0.05
PART_BYTES = 256
BATCH_RECORDS = 8
CREDIT = 1000  # bytes: about three batches
STORM = 3000  # messages in one step, in which no time passes
POISON = -1.0


@dataclass
class Link:
    """Frames under way, each with the time at which it arrives."""

    random: random.Random
    loss: float = 0.0
    repeat: float = 0.0
    delay_s: float = 0.0  # up to this; frames overtake each other when it is not zero
    latency_s: float = 0.0
    bytes_per_s: float = math.inf
    sent: int = 0
    _free_at: float = 0.0
    _due: list[tuple[float, int, bytes]] = field(default_factory=list)

    def send(self, message: Message, now: float) -> None:
        frame = encode(message)
        copies = 1 + (self.random.random() < self.repeat)
        for _ in range(copies):
            if self.random.random() < self.loss:
                continue
            self.sent += 1
            self._free_at = max(now, self._free_at) + len(frame) / self.bytes_per_s
            delay = self.latency_s + self.random.random() * self.delay_s
            heapq.heappush(self._due, (self._free_at + delay, self.sent, frame))

    def arrived(self, now: float) -> Message | None:
        if self._due and self._due[0][0] <= now:
            return decode(heapq.heappop(self._due)[2])
        return None

    def cut(self) -> None:
        self._due.clear()


class Trainer:
    """What a client's outbox and sender do, with lists."""

    def __init__(self, pair: Pair, instance: int = 1) -> None:
        self.pair = pair
        hello = Hello(b"u" * 16, instance, 0, RunSpec("run", "/logs"))
        self.session = WatchedSession(hello, pair.random.random)
        self.records: list[bytes] = []  # record n is records[n - 1]
        self.large: set[int] = set()
        self.holes: set[int] = set()
        self.tag_sets: list[tuple[str, ...]] = []
        self.tags_sent = 0
        self.sent_seq = 0
        self.connect_at: float | None = 0.0
        self.rejected: Rejected | None = None
        self.refusals: list[Refused] = []
        self.finishing = False

    @property
    def last_seq(self) -> int:
        return len(self.records)

    def emit(self, value: float = 0.0, new_tags: bool = False) -> None:
        if self.finishing:
            return
        if new_tags or not self.tag_sets:
            self.tag_sets.append((f"tag{len(self.tag_sets)}",))
        tag_set, seq = len(self.tag_sets) - 1, self.last_seq + 1
        self.records.append(encode_scalars(Scalars(tag_set, seq, tag_set, (value,))))

    def emit_large(self, nbytes: int) -> None:
        if self.finishing:
            return
        seq = self.last_seq + 1
        value = Value("blob", "tag", seq, 0, {}, [Array("uint8", (nbytes,), bytes(nbytes))])
        self.records.append(b"".join(encode_value(value)[1]))
        self.large.add(seq)

    def drop(self, first_seq: int, last_seq: int) -> None:
        """As an outbox does: only what was never sent."""
        self.holes.update(
            range(max(first_seq, self.sent_seq + 1), min(last_seq, self.last_seq) + 1)
        )

    def finish(self) -> None:
        self.finishing = True
        self.do(self.session.finish(self.last_seq, self.pair.now))

    def run(self) -> None:
        """What the sender's loop does at each wake-up."""
        now = self.pair.now
        self.session.books = Books(self.last_seq, len(self.holes), 0)
        if self.connect_at is not None and now >= self.connect_at:
            self.connect_at = None
            self.do(self.session.connected(now))
        self.do(self.session.tick(now))
        while self.session.state is ClientState.READY and self._send_next():
            pass

    def receive(self, message: Message) -> None:
        was = self.session.state
        self.do(self.session.receive(message, self.pair.now))
        if was is ClientState.GREETING and self.session.state is not was:
            self.tags_sent = 0

    def do(self, actions: list[ClientAction]) -> None:
        for action in actions:
            match action:
                case Send(message):
                    self.pair.up.send(message, self.pair.now)
                case Durable(seq, _):
                    self.pair.check_durable(seq)
                case Refused(first_seq, last_seq):
                    self.refusals.append(action)
                    self.holes.update(range(first_seq, last_seq + 1))
                case Reconnect(delay_s):
                    self.connect_at = self.pair.now + delay_s
                case Rejected():
                    self.rejected = action
                case _:
                    pass

    def _send_next(self) -> bool:
        session, now = self.session, self.pair.now
        if self.tags_sent < len(self.tag_sets):
            self.pair.up.send(Tags(self.tags_sent, tuple(self.tag_sets[self.tags_sent :])), now)
            self.tags_sent = len(self.tag_sets)
        first = last = session.next_seq
        if first > self.last_seq:
            return False
        messages: list[Message]
        if first in self.holes:
            while last + 1 in self.holes:
                last += 1
            size, messages = 0, [Gap(first, last, "full")]
        elif first in self.large:
            data = self.records[first - 1]
            size, messages = (
                len(data),
                [
                    Part(first, at, len(data), data[at : at + PART_BYTES])
                    for at in range(0, len(data), PART_BYTES)
                ],
            )
        else:
            # A slice of an outbox begins where one was cut before, so some records go twice.
            while first > 1 and first % 3 and self._small(first - 1):
                first -= 1
            while last - first + 1 < BATCH_RECORDS and self._small(last + 1):
                last += 1
            data = b"".join(self.records[first - 1 : last])
            size, messages = len(data), [Batch(first, last, data)]
        if not session.may_send(size):
            return False
        self.sent_seq = max(self.sent_seq, last)
        for message in messages:
            self.pair.up.send(message, now)
        session.sent(first, last, size, now)
        return True

    def _small(self, seq: int) -> bool:
        return 0 < seq <= self.last_seq and seq not in self.large and seq not in self.holes


class WatchedSession(ClientSession):
    """A client's end that remembers which transitions it made."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.transitions: set[tuple[ClientState, ClientEvent]] = set()

    def _move(self, event: ClientEvent) -> bool:
        before = self.state
        moved = super()._move(event)
        if moved:
            self.transitions.add((before, event))
        return moved


@dataclass
class Journal:
    """What a daemon has on its disk of one client."""

    durable_seq: int = 0
    dropped: int = 0
    records: dict[int, bytes] = field(default_factory=dict)
    gaps: set[int] = field(default_factory=set)


class Daemon:
    """What ingest does around a `ServerSession`, with a journal that is a dict."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.journals = [Journal()]
        self.session: ServerSession | None = None
        self.daemon_id = 1
        self.up_at = 0.0
        self.credit = CREDIT
        self.committing = True  # at each step, or only when told
        self.duplicate_alive = False
        self.farewells = 0
        self._tags: dict[int, tuple[str, ...]] = {}
        self._taken: list[tuple[int, bytes | None]] = []

    def crash(self, down_s: float, fresh_journal: bool) -> None:
        self.session, self._taken, self._tags = None, [], {}
        self.daemon_id += 1
        self.up_at = self.pair.now + down_s
        if fresh_journal:
            self.journals.append(Journal())

    def run(self) -> None:
        if self.committing and self._taken:
            self.commit()

    def receive(self, message: Message) -> None:
        if self.pair.now < self.up_at:
            return
        if self.session is None:
            if not isinstance(message, Hello):
                self._send(Nack("unknown_session", "say HELLO first"))
                return
            journal = self.journals[-1]
            self.session = ServerSession(self.daemon_id, journal.durable_seq, journal.dropped)
        self.session.credit = self.credit
        self.do(self.session.receive(message, self.duplicate_alive))

    def do(self, actions: list[ServerAction]) -> None:
        for action in actions:
            match action:
                case Send(message):
                    self._send(message)
                case DefineTags(first_id, tag_sets):
                    self._tags.update(enumerate(tag_sets, first_id))
                case Append():
                    self._append(action)
                case CountGap(first_seq, last_seq):
                    self._taken += [(seq, None) for seq in range(first_seq, last_seq + 1)]
                case Farewell():
                    self.farewells += 1

    def commit(self, fail: bool = False) -> None:
        """End the transaction that is open."""
        if self.session is None:
            return
        self.session.credit = self.credit
        taken, self._taken = self._taken, []
        if fail:
            self.session.rolled_back()
            return
        journal = self.journals[-1]
        for seq, data in taken:
            assert seq not in journal.records, f"record {seq} was journalled twice"
            assert seq not in journal.gaps, f"record {seq} was counted as dropped before"
            assert seq > journal.durable_seq, f"record {seq} came after {journal.durable_seq}"
            if data is None:
                journal.gaps.add(seq)
            else:
                assert data == self.pair.trainer.records[seq - 1]
                journal.records[seq] = data
        actions = self.session.committed()
        journal.durable_seq, journal.dropped = self.session.durable_seq, self.session.dropped
        self.do(actions)

    def _append(self, append: Append) -> None:
        """Take records until one that can never be taken, or not yet."""
        assert self.session is not None
        data = bytes(append.data)
        spans = list(walk(data))[append.skip :]
        assert len(spans) == append.last_seq - append.first_seq + 1
        for seq, (offset, length, kind) in enumerate(spans, append.first_seq):
            rest = replace(append, first_seq=seq)
            if kind == SCALARS:
                record = decode_scalars(data, offset)
                assert record.step == seq
                if record.values == (POISON,):
                    self.do(self.session.refuse(replace(rest, last_seq=seq), "poison"))
                    return
                if record.tag_set not in self._tags:
                    self.do(self.session.undefined(rest))
                    return
                assert self._tags[record.tag_set] == (f"tag{record.time_ns}",)
            self._taken.append((seq, data[offset : offset + length]))

    def _send(self, message: Message) -> None:
        self.pair.down.send(message, self.pair.now)


class Pair:
    """A trainer, a daemon, two links between them, and the time."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.up = Link(self.random)
        self.down = Link(self.random)
        self.trainer = Trainer(self)
        self.daemon = Daemon(self)

    @property
    def client(self) -> ClientSession:
        return self.trainer.session

    def set_link(self, loss: float, repeat: float, delay_s: float, latency_s: float = 0.0) -> None:
        for link in (self.up, self.down):
            link.loss, link.repeat, link.delay_s = loss, repeat, delay_s
            link.latency_s = latency_s

    def cut(self) -> None:
        """Lose all that is under way."""
        self.up.cut()
        self.down.cut()

    def emit(self, count: int, new_tags: bool = False) -> None:
        for n in range(count):
            self.trainer.emit(float(n), new_tags and n == 0)

    def emit_large(self, nbytes: int) -> None:
        self.trainer.emit_large(nbytes)

    def emit_poison(self) -> None:
        """A record that the daemon can never take."""
        self.trainer.emit(POISON)

    def drop(self, first: float, last: float) -> None:
        """Drop a portion of all records, as far as they were not sent."""
        count = self.trainer.last_seq
        self.trainer.drop(1 + int(first * count), int(last * count))

    def finish(self) -> None:
        self.trainer.finish()

    def commit(self, how: str) -> None:
        """End the daemon's transaction, and say whether it shall always do so by itself."""
        self.daemon.committing = how == "always"
        self.daemon.commit(fail=how == "fail")

    def crash(self, down_s: float, fresh_journal: bool) -> None:
        """Kill the daemon; another comes up after `down_s`."""
        self.daemon.crash(down_s, fresh_journal)

    def set_credit(self, credit: int) -> None:
        self.daemon.credit = credit

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while self.now < until:
            self.now += STEP_S
            self.step()

    def step(self) -> None:
        """Deliver what is due, as long as there is something, at the present time."""
        self.trainer.run()
        before = self.up.sent
        while True:
            assert self.up.sent - before < STORM, f"messages beget messages without end: {self}"
            if message := self.up.arrived(self.now):
                self.daemon.receive(message)
                continue
            self.daemon.run()
            if message := self.down.arrived(self.now):
                self.trainer.receive(message)
                self.trainer.run()
                continue
            return

    def settle(self, within_s: float) -> None:
        """From now on nothing fails: everything must be acknowledged, and the client released."""
        self.set_link(0.0, 0.0, 0.0)
        daemon = self.daemon
        daemon.committing, daemon.credit, daemon.duplicate_alive = True, CREDIT, False
        daemon.up_at = min(daemon.up_at, self.now)
        if not self.trainer.finishing:
            self.trainer.finish()
        until = self.now + within_s
        while self.client.state not in (ClientState.CLOSED, ClientState.REJECTED):
            assert self.now < until, f"{self.client.state} after {within_s} s: {self}"
            self.run(STEP_S)

    def check_durable(self, seq: int) -> None:
        """What was acknowledged is in some journal, as a record or as a gap that was announced."""
        for number in range(1, seq + 1):
            assert any(number in j.records or number in j.gaps for j in self.daemon.journals), (
                f"{number} was acknowledged (up to {seq}) and is in no journal"
            )

    def check_settled(self) -> None:
        """The journals together hold what was emitted: once, in order, without a silent loss."""
        trainer, journals = self.trainer, self.daemon.journals
        assert self.client.state is ClientState.CLOSED
        assert self.client.acked_seq == trainer.last_seq
        self.check_durable(trainer.last_seq)
        for journal in journals:
            assert list(journal.records) == sorted(journal.records)
            assert journal.gaps <= trainer.holes
            assert not trainer.holes & journal.records.keys()
        assert self.client.acked_dropped == len(trainer.holes)
        if len(journals) == 1:
            (journal,) = journals
            everything = set(range(1, trainer.last_seq + 1))
            assert journal.records.keys() == everything - trainer.holes
            assert journal.dropped == len(trainer.holes)

    def __str__(self) -> str:
        session = self.daemon.session
        return (
            f"t={self.now:.2f} client={vars(self.client)} daemon="
            f"{vars(session) if session else None} journals={self.daemon.journals}"
        )

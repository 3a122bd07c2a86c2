"""The rule of resumption, and who is asked: nothing doubles back, nothing of the living hides."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sidestep.proto import (
    Ack,
    Batch,
    Bye,
    Hello,
    Message,
    Ping,
    Pong,
    RunSpec,
    Tags,
    Value,
    Welcome,
)
from sidestep.proto.records import Scalars, encode_scalars, encode_value
from sidestep.sidecar.control.status import run_state
from sidestep.sidecar.ingest.clients import Clients
from sidestep.sidecar.ingest.own_points import OwnPoints
from sidestep.sidecar.ingest.roster import ClientEntry, Limits, RunEntry
from sidestep.sidecar.journal.resume import Curve, Trail, lead, purge_step, repeats, unpacked
from sidestep.sidecar.journal.writer import Journal
from sidestep.sidecar.peers.refusals import Refusals

LOSS = ("train/loss", "train/lr")
EVAL = ("eval/accuracy",)
INT64 = st.integers(-(2**63), 2**63 - 1)

calm = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


# --- the rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "reached", "fronts", "step"),
    [
        (800, 1000, [None], 800),
        (1000, 1000, [], None),  # the same step once more: nothing doubles back
        (1001, 1000, [], None),
        (0, 1000, [-5], 0),
        (800, 1000, [800], 801),  # a picture of this step, emitted a moment before
        (800, 1000, [820, None, 810], 821),  # another rank is ahead
        (800, 1000, [1000], None),
        (-(2**63), 2**63 - 1, [], -(2**63)),
        (0, 2**63 - 1, [2**63 - 1], None),
    ],
)
def test_from_which_step_on(
    first: int, reached: int, fronts: list[int | None], step: int | None
) -> None:
    assert purge_step(first, reached, fronts) == step


def test_the_lead_is_what_was_emitted_most_often_and_first() -> None:
    trainer = Trail(curves={0: Curve(5, 90), 1: Curve(100, 100), 2: Curve(100, 100)})
    script = Trail(curves={0: Curve(7, 5000)})
    assert lead([script, trainer]) == (1, 1)
    assert lead([Trail(), script]) == (1, 0)
    assert lead([Trail()]) is lead([]) is None


def test_who_repeats_the_lead() -> None:
    leading = frozenset({"loss", "lr", "eval/loss", "eval/top1"})
    assert repeats(("lr", "loss", "eval/loss"), leading)
    assert not repeats(("eval/loss", "eval/top1"), leading)
    assert not repeats((), frozenset())


@calm
@given(st.lists(st.tuples(st.integers(-1, 40), st.integers(1, 5), INT64), max_size=40), INT64)
def test_a_trail_is_stored_with_its_lead(records: list[tuple[int, int, int]], step: int) -> None:
    trail = Trail(attempt=3, resumed=True)
    trail.take((tag_set, count, at, at) for tag_set, count, at in records)
    trail.cut(step)
    again = unpacked(trail.packed())
    assert (again.attempt, again.settled, again.resumed) == (3, False, True)
    assert again.front == trail.front
    assert lead([again]) == lead([trail])
    assert again.curves.items() <= trail.curves.items()
    assert all(curve.furthest < step for curve in again.curves.values()) or step == -(2**63)


# --- who is asked, with the real journal and the real sessions ------------------------------------


@dataclass
class Peer:
    """A client by hand."""

    uuid: bytes
    rank: int = 0
    run: RunSpec = field(default_factory=lambda: RunSpec("r", "/logs"))
    outbox: str = ""
    world_size: int = 1
    connection: int = 0
    seq: int = 0
    tag_sets: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])
    finished: bool = False

    def hello(self) -> Hello:
        self.connection += 1
        who = Hello(self.uuid, 1, self.connection, self.run, rank=self.rank, outbox=self.outbox)
        return replace(who, world_size=self.world_size)


class Node:
    """Clients as ingest holds them, over a journal; each call is one round of it."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self.now = 100.0
        self.said: list[str] = []
        self.sent: list[tuple[bytes, Message]] = []
        self.made = 0
        self.look_wanted = False
        self._open()

    def _open(self) -> None:
        self.journal = Journal(self.path, log=self.said.append)
        self.own = OwnPoints(self.journal)
        self.clients = Clients(
            self.journal,
            1,
            Limits(),
            lambda identity, message: self.sent.append((identity, message)),
            self.own.purge,
            self.said.append,
            Refusals(None, self.said.append),
        )
        self.clients.load()

    def restart(self) -> None:
        """The daemon is killed, and another comes."""
        self.journal.close()
        self._open()

    def round(
        self,
        peer: Peer,
        *messages: Message,
        adopting: Sequence[RunSpec] = (),
        lose: bool = False,
        look: bool = True,
    ) -> list[Message]:
        """One round of ingest with messages of a client; what it is answered.

        With `look` it looks through the outboxes of the dead, which it does not on a full disk.
        """
        self.sent.clear()
        self.now += 0.01
        touched: list[ClientEntry | None] = [
            self.clients.receive(peer.uuid, message, self.now) for message in messages
        ]
        self.look_wanted = self.clients.attempts.scan_wanted
        if look:
            self.clients.attempts.scan_wanted = False
        touched += self.clients.settle(adopting, self.now)
        self.clients.look_after(self.now)
        self.clients.store()
        if lose:
            self.journal.rollback()
            self.own.forget()
            self.clients.forget()
            return []
        self.journal.commit()
        for entry in {id(e): e for e in touched if e is not None and e.committing}.values():
            self.clients.committed(entry)
        return [message for identity, message in self.sent if identity == peer.uuid]

    def connect(self, **peer: Any) -> Peer:
        self.made += 1
        made = Peer(self.made.to_bytes(16, "big"), **peer)
        self.round(made, made.hello())
        return made

    def emit(self, peer: Peer, tags: tuple[str, ...], *steps: int, lose: bool = False) -> None:
        """A batch of records; with `lose` the first try is lost with its transaction."""
        if tags not in peer.tag_sets:
            peer.tag_sets.append(tags)
        number = peer.tag_sets.index(tags)
        data = b"".join(
            encode_scalars(Scalars(number, step, 1, (0.5,) * len(tags))) for step in steps
        )
        first, peer.seq = peer.seq + 1, peer.seq + len(steps)
        messages = (Tags(number, (tags,)), Batch(first, peer.seq, data))
        if lose:
            self.round(peer, *messages, lose=True)
        answers = self.round(peer, *(() if not lose else (peer.hello(),)), *messages)
        assert answers[-1] == Ack(peer.seq, 0, Limits().credit_bytes), answers

    def value(self, peer: Peer, step: int) -> None:
        peer.seq += 1
        data = b"".join(encode_value(Value("text", "t", step, 1, {"text": ""}))[1])
        self.round(peer, Batch(peer.seq, peer.seq, data))

    def finish(self, peer: Peer) -> None:
        self.round(peer, Bye(peer.seq))
        peer.finished = True

    def lose(self, peer: Peer) -> None:
        """The client is dead, and its outbox was read."""
        entry = self.entry(peer)
        entry.row.state, entry.changed, entry.identity = "lost", True, None
        self.clients.published.touch(entry)
        self.journal.begin()
        self.clients.store()
        self.journal.commit()
        peer.finished = True

    def all(self) -> list[ClientEntry]:
        return list(vars(self.clients)["_clients"].values())

    def entry(self, peer: Peer) -> ClientEntry:
        return next(e for e in self.all() if e.row.uuid == peer.uuid)

    def state(self) -> str:
        return run_state(self.all())

    def events(self) -> list[tuple[bytes, int, str]]:
        """(client, step, tag) of all numbers in the journal's order, and ``purge`` of purges."""
        from sidestep.sidecar.journal.reader import JournalReader
        from sidestep.sidecar.rows.points import ScalarBlock, read_points

        uuids = {row.id: row.uuid for row in self.journal.clients()}
        reader = JournalReader(self.path)
        found: list[tuple[bytes, int, str]] = []
        for row in reader.rows(0, max_bytes=1 << 30):
            for point in read_points(row.data, reader.tag_sets(row.client_id, refresh=True)):
                if isinstance(point, ScalarBlock):
                    at = [int(step) for step in point.steps]
                    found += [(uuids[row.client_id], s, tag) for s in at for tag in point.tags]
                elif point.kind == "purge":
                    found.append((b"", point.step, "purge"))
        reader.close()
        return found

    def purges(self) -> list[int]:
        return [step for _, step, tag in self.events() if tag == "purge"]

    def visible(self, tag: str) -> list[int]:
        """The steps under a tag that TensorBoard has when it has read all."""
        shown: list[tuple[int, str]] = []
        for _, step, name in self.events():
            if name == "purge":
                shown = [one for one in shown if one[0] < step]
            else:
                shown.append((step, name))
        return [step for step, name in shown if name == tag]

    def close(self) -> None:
        self.journal.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "journal.sqlite")
    yield made
    made.close()


def test_a_run_goes_on_from_a_checkpoint(node: Node) -> None:
    first = node.connect()
    node.emit(first, LOSS, *range(100))
    node.finish(first)
    second = node.connect()
    node.emit(second, LOSS, *range(80, 90))
    node.emit(second, LOSS, *range(90, 120))
    node.emit(second, LOSS, 5)  # back again: that is the trainer's own business
    assert node.purges() == [80]
    assert node.visible("train/loss") == [*range(120), 5]
    assert [entry.trail.attempt for entry in node.all()] == [1, 2]
    assert "goes on from step 80, below 99" in node.said[-1]


def test_a_third_attempt_begins_where_the_second_was(node: Node) -> None:
    for steps in (range(100), range(80, 90), range(85, 95), range(95, 120)):
        peer = node.connect()
        node.emit(peer, LOSS, *steps)
        node.lose(peer)
        node.restart()
    assert node.purges() == [80, 85]
    assert node.visible("train/loss") == [*range(120)]


def test_an_evaluation_hides_nothing(node: Node) -> None:
    trainer = node.connect()
    for step in range(100):
        node.emit(trainer, LOSS, step)
        if step % 10 == 9:
            node.emit(trainer, EVAL, step)
    node.finish(trainer)
    for _ in range(2):  # the second repeats what the first has emitted, and the trainer before
        script = node.connect()
        node.emit(script, EVAL, 50, 60, 70)
        node.emit(script, ("eval/loss", "train/lr"), 40)
        node.finish(script)
    assert node.purges() == []
    second = node.connect()
    node.emit(second, EVAL, 80)  # before it trains
    node.emit(second, LOSS, *range(80, 200))
    assert node.purges() == [81], "what it has emitted itself stays"
    assert node.visible("train/loss") == [*range(81), *range(80, 200)]
    assert node.visible("eval/accuracy")[-1] == 80


def test_what_is_emitted_in_epochs_beside_steps_is_no_lead(node: Node) -> None:
    first = node.connect()
    for epoch in range(5):
        node.emit(first, LOSS, *range(100 * epoch, 100 * epoch + 100))
        node.emit(first, ("train_epoch/loss",), epoch)
    node.finish(first)
    second = node.connect()
    node.emit(second, ("train_epoch/loss",), 3)
    node.emit(second, LOSS, *range(400, 500))
    assert node.purges() == [400]
    assert node.visible("train/loss") == [*range(500)]


def test_values_before_the_first_number_stay(node: Node) -> None:
    first = node.connect()
    node.emit(first, LOSS, *range(100))
    node.finish(first)
    second = node.connect()
    node.value(second, 80)
    node.emit(second, LOSS, 80)
    assert node.purges() == [81]


def test_beside_a_living_one_nothing_is_resumed(node: Node) -> None:
    first = node.connect(outbox=os.devnull)
    node.emit(first, LOSS, *range(100))
    second = node.connect()
    node.emit(second, LOSS, *range(50))
    assert node.purges() == []
    assert [entry.trail.attempt for entry in node.all()] == [1, 1]


def test_of_two_that_come_after_it_one_goes_on(node: Node) -> None:
    first = node.connect()
    node.emit(first, LOSS, *range(100))
    node.lose(first)
    second, beside = node.connect(outbox=os.devnull), node.connect()
    node.emit(beside, LOSS, *range(50, 60))
    assert node.purges() == []
    node.emit(second, LOSS, *range(80, 90))
    assert node.purges() == [80]


def test_ranks_do_not_hide_each_others_news(node: Node) -> None:
    tags = [tuple(f"rank_{rank}/{tag}" for tag in LOSS) for rank in range(2)]
    for rank, peer in enumerate([node.connect(rank=0), node.connect(rank=1)]):
        node.emit(peer, tags[rank], *range(100))
        node.lose(peer)
    zero, one = node.connect(rank=0), node.connect(rank=1)
    node.emit(zero, tags[0], *range(80, 90))
    node.emit(one, tags[1], *range(80, 100))
    assert node.purges() == [80], "the first one's is for all"
    for rank in range(2):
        assert node.visible(f"rank_{rank}/train/loss") == [*range(90 if rank == 0 else 100)]


@pytest.mark.parametrize("shown", [False, {"folder": "."}, {"folder": ".", "suffix": ".a"}])
def test_where_torch_says_it_itself_nothing_is_purged(
    node: Node, shown: bool | dict[str, object]
) -> None:
    spec = RunSpec("r", "/logs", tensorboard=shown)
    for first in (0, 5):
        peer = node.connect(run=spec)
        node.emit(peer, LOSS, *range(first, 10))
        node.finish(peer)
    assert node.purges() == []


def test_a_lost_run_that_was_resumed_is_well(node: Node) -> None:
    first = node.connect()
    node.emit(first, LOSS, *range(10))
    node.lose(first)
    assert node.state() == "lost"
    script = node.connect()
    node.emit(script, EVAL, 5)
    node.finish(script)
    assert node.state() == "lost", "an evaluation does not go on with it"
    second = node.connect()
    node.emit(second, LOSS, *range(10, 20))
    assert node.state() == "running"
    node.finish(second)
    assert node.state() == "finished"
    node.restart()
    assert node.state() == "finished"


# --- before it is known ----------------------------------------------------------------------


def welcome_credit(answers: list[Message]) -> int:
    (welcome,) = (a for a in answers if isinstance(a, Welcome))
    return welcome.credit


def test_a_new_client_has_credit_at_once(node: Node) -> None:
    peer = Peer(b"p" * 16)
    assert welcome_credit(node.round(peer, peer.hello())) == Limits().credit_bytes
    assert node.look_wanted


def test_a_new_client_waits_for_the_outbox_of_the_dead(node: Node) -> None:
    first = node.connect(outbox=os.devnull)
    node.emit(first, LOSS, *range(100))
    second = Peer(b"s" * 16)
    # The first one's outbox is found, its lock is free: it is being read.
    answers = node.round(second, second.hello(), adopting=[second.run])
    assert welcome_credit(answers) == 0
    assert node.round(second, adopting=[second.run]) == []
    node.lose(first)
    assert node.round(second) == [Ack(0, 0, Limits().credit_bytes)]
    node.emit(second, LOSS, *range(80, 90))
    assert node.purges() == [80]


def test_a_client_whose_outbox_cannot_be_seen_may_be_dead(node: Node) -> None:
    """Over TCP: it is heard within a second or two, or it counts as lost after ten."""
    first = node.connect(outbox="/nowhere/on/this/machine")
    node.emit(first, LOSS, *range(100))
    second = Peer(b"s" * 16)
    assert welcome_credit(node.round(second, second.hello())) == 0
    for _ in range(3):
        assert node.round(second, Ping()) == [Pong(), Ack(0, 0, 0)]
        node.now += 3.5
    node.round(second, Ping())
    assert node.entry(first).row.state == "lost"
    assert node.round(second) == [Ack(0, 0, Limits().credit_bytes)]
    node.emit(second, LOSS, 80)
    assert node.purges() == [80]


def test_a_client_that_is_heard_lives(node: Node) -> None:
    first = node.connect(outbox="/nowhere/on/this/machine")
    node.emit(first, LOSS, *range(100))
    second = Peer(b"s" * 16)
    assert welcome_credit(node.round(second, second.hello())) == 0
    node.emit(first, LOSS, 100)
    assert node.round(second) == []  # it was told in the round before
    node.emit(second, LOSS, 80)
    assert node.purges() == []


def test_nobody_joins_a_world_of_which_the_rest_may_be_dead(node: Node) -> None:
    """A job on another machine was killed and begun again; its ranks were not heard at once."""
    job: dict[str, Any] = {"outbox": "/nowhere/on/this/machine", "world_size": 2}
    dead = [node.connect(rank=rank, **job) for rank in (0, 1)]
    for one in dead:
        node.round(one, Ping())
        node.emit(one, LOSS, *range(10))
        node.now += 0.5
    assert [node.entry(one).world for one in dead] == [1, 1]
    again = [node.connect(rank=rank, **job) for rank in (0, 1)]
    for _ in range(30):
        node.now += 0.5
        for one in again:
            node.round(one, Ping())
    assert [node.entry(one).row.state for one in dead] == ["lost", "lost"]
    assert [node.entry(one).world for one in again] == [2, 2]


def test_nobody_waits_for_ever(node: Node) -> None:
    second = Peer(b"s" * 16)
    answers = node.round(second, second.hello(), adopting=[second.run])
    assert welcome_credit(answers) == 0
    for _ in range(3):
        node.now += 3.7
        answers = node.round(second, Ping(), adopting=[second.run])
    assert answers == [Pong(), Ack(0, 0, 0), Ack(0, 0, Limits().credit_bytes)]


def test_a_new_attempt_waits_for_what_is_derived_of_the_one_before(node: Node) -> None:
    """Its reductions over ranks, the newest of which await the dead, are drawn before the purge."""
    ranks = [node.connect(rank=rank) for rank in range(2)]
    for peer in ranks:
        node.emit(peer, LOSS, *range(100))
    (run,) = node.clients.runs.values()
    run.derived_row, run.to_derive_row = 1, 2
    for peer in ranks:
        node.lose(peer)
    zero, one, late = (Peer(bytes([100 + n]) * 16, rank=n % 2) for n in range(3))
    assert welcome_credit(node.round(zero, zero.hello())) == 0
    assert node.round(zero) == []
    run.derived_row = 2
    assert node.round(zero) == [Ack(0, 0, Limits().credit_bytes)]
    # Who joins it awaits nothing: what is not derived now may await its own word.
    node.emit(zero, LOSS, 80, 81)
    run.to_derive_row = 3
    assert welcome_credit(node.round(one, one.hello())) == Limits().credit_bytes
    assert node.purges() == [80]
    # And nobody waits for ever.
    node.lose(zero)
    node.lose(one)
    answers = node.round(late, late.hello())
    assert welcome_credit(answers) == 0
    for _ in range(3):
        node.now += 3.7
        answers = node.round(late, Ping())
    assert answers == [Pong(), Ack(0, 0, 0), Ack(0, 0, Limits().credit_bytes)]


def test_a_job_that_grows_goes_on_from_a_checkpoint(node: Node) -> None:
    """The rank that it did not have before may be the first to speak, of what all reduce."""
    old = node.connect(world_size=1)
    node.emit(old, LOSS, *range(100))
    (run,) = node.clients.runs.values()
    run.derived_row, run.to_derive_row = 1, 2
    node.lose(old)
    zero, one = (Peer(bytes([100 + n]) * 16, rank=n, world_size=2) for n in range(2))
    for peer in (one, zero):
        assert welcome_credit(node.round(peer, peer.hello())) == 0
    run.derived_row = 2
    assert node.round(one) == [Ack(0, 0, Limits().credit_bytes)]
    for peer in (one, zero):
        node.emit(peer, LOSS, *range(80, 90))
    assert node.purges() == [80]
    # An evaluation beside them resumes nothing, and waits for nothing.
    run.to_derive_row = 3
    script = Peer(b"e" * 16)
    assert welcome_credit(node.round(script, script.hello())) == Limits().credit_bytes


def test_where_nothing_can_be_hidden_nobody_waits_for_the_derivers(node: Node) -> None:
    first = node.connect()
    node.value(first, 0)
    (run,) = node.clients.runs.values()
    run.derived_row, run.to_derive_row = 1, 2
    node.lose(first)
    second = Peer(b"s" * 16)
    assert welcome_credit(node.round(second, second.hello())) == Limits().credit_bytes


def test_a_waiting_client_waits_at_the_next_daemon_too(node: Node) -> None:
    second = Peer(b"s" * 16)
    node.round(second, second.hello(), adopting=[second.run])
    node.restart()
    assert welcome_credit(node.round(second, second.hello(), adopting=[second.run])) == 0
    assert node.round(second) == [Ack(0, 0, Limits().credit_bytes)]


# --- any history -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """A trainer from its first step on, perhaps with an evaluation after it."""

    start: int
    length: int
    batch: int
    restarts: frozenset[int]
    lost: frozenset[int]
    evaluates: tuple[int, ...]


ATTEMPTS = st.lists(
    st.builds(
        Attempt,
        st.integers(-5, 30),
        st.integers(4, 30),  # more than an evaluation has, or that would lead
        st.integers(1, 7),
        st.frozensets(st.integers(0, 6), max_size=2),
        st.frozensets(st.integers(0, 6), max_size=2),
        st.lists(st.integers(0, 40), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=5,
)


@settings(calm, max_examples=30)
@given(ATTEMPTS)
def test_no_curve_doubles_back_whatever_is_killed(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[Attempt]
) -> None:
    node = Node(tmp_path_factory.mktemp("node") / "journal.sqlite")
    expected: list[int] = []
    emitted: list[int] = []
    evaluated = 0
    for one in attempts:
        peer = node.connect()
        steps = range(one.start, one.start + one.length)
        for number, at in enumerate(range(0, one.length, one.batch)):
            if number in one.restarts:
                node.restart()
                node.round(peer, peer.hello())
            node.emit(peer, LOSS, *steps[at : at + one.batch], lose=number in one.lost)
        node.lose(peer)
        # Once it has as much as begun where the curve was, that is hidden; a step alike is not.
        if expected and one.start < max(expected):
            expected = [step for step in expected if step < one.start]
        expected += steps
        emitted += steps
        if one.evaluates:
            script = node.connect()
            node.emit(script, EVAL, *one.evaluates)
            node.finish(script)
            evaluated += len(one.evaluates)
    assert node.visible("train/loss") == expected
    assert expected == sorted(expected)
    everything = [(step, tag) for _, step, tag in node.events() if tag != "purge"]
    assert [step for step, tag in everything if tag == "train/loss"] == emitted
    assert sum(tag == "eval/accuracy" for _, tag in everything) == evaluated
    assert len(node.purges()) < len(attempts)
    node.close()


def test_run_entries_have_what_a_purge_needs(node: Node) -> None:
    run = RunEntry(1, RunSpec("r", "/logs"))
    node.journal.begin()
    node.journal.put_run(run.spec)
    node.own.purge(run, 7)
    node.journal.commit()
    assert node.purges() == [7]


def test_nobody_joins_an_attempt_before_the_dead_were_looked_for(tmp_path: Path) -> None:
    """On a full disk no outbox is read, and who lies there seems to live."""
    node = Node(tmp_path / "journal.sqlite")
    outbox = tmp_path / "dead.outbox"
    outbox.touch()
    first = node.connect(outbox=str(outbox))
    node.emit(first, LOSS, *range(10))
    second = Peer(b"s" * 16)
    node.round(second, second.hello(), look=False)
    assert node.entry(second).trail.attempt == 0
    outbox.unlink()
    node.lose(first)
    assert isinstance(node.round(second, Ping())[-1], Ack)
    assert node.entry(second).trail.attempt == 2

"""Ingest over real sockets: what it acknowledges is in the journal, and nothing else."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from sidestep.proto import (
    Ack,
    Alarm,
    Batch,
    Books,
    Bye,
    ByeAck,
    Gap,
    Hello,
    Message,
    Nack,
    Part,
    Ping,
    Pong,
    Reject,
    RunSpec,
    Tags,
    Value,
    Welcome,
    decode,
    encode,
)
from sidestep.proto.records import Array, Scalars, encode_scalars, encode_value
from sidestep.proto.segments import LOST, REJECTED, SMALL, Outbox
from sidestep.sidecar.alarms import State, TagState, packed
from sidestep.sidecar.control import status
from sidestep.sidecar.forwarding.passengers import Passengers
from sidestep.sidecar.ingest import pace
from sidestep.sidecar.ingest.books import RunBooks, of_client
from sidestep.sidecar.ingest.pace import pace_ms
from sidestep.sidecar.ingest.roster import DaemonPoints, Limits
from sidestep.sidecar.ingest.thread import Ingest
from sidestep.sidecar.journal import check as journal_check
from sidestep.sidecar.journal.derive_state import DeriveState
from sidestep.sidecar.journal.reader import JournalReader
from sidestep.sidecar.journal.writer import Journal
from sidestep.sidecar.rows.points import ScalarBlock, read_points
from tests.support.waiting import wait_until


class FailingJournal(Journal):
    """A journal whose disk is full, or slow, for a while."""

    full = False
    unreadable = False
    fast = threading.Event()

    def commit(self) -> None:
        FailingJournal.fast.wait(20)
        super().commit()

    def begin(self) -> None:
        if FailingJournal.full:
            raise sqlite3.OperationalError("database or disk is full")
        super().begin()

    def runs(self) -> dict[int, RunSpec]:
        if FailingJournal.unreadable:
            raise sqlite3.OperationalError("disk I/O error")
        return super().runs()


class Service:
    """A running ingest thread and its journal."""

    def __init__(self, folder: Path, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.context = context
        self.endpoint = f"ipc://{folder}/data.sock"
        self.path = str(folder / "journal.sqlite")
        self.outboxes = str(folder / "outboxes")
        self.quarantine = str(folder / "quarantine")
        self.said: list[str] = []
        self.sockets: list[zmq.Socket[bytes]] = []
        self.ingest = self._new()

    def _new(self) -> Ingest:
        ingest = Ingest(
            [self.endpoint],
            lambda: FailingJournal(self.path),
            [self.outboxes],
            Limits(credit_bytes=1 << 20, max_clients=2),
            self.quarantine,
            lambda _row: None,
            self.said.append,
        )
        ingest.start()
        assert ingest.ready.wait(10)
        assert ingest.failed is None
        return ingest

    def restart(self) -> None:
        self.stop()
        self.ingest = self._new()

    def stop(self) -> None:
        self.ingest.stop()
        self.ingest.join(10)

    def rows(self) -> list[tuple[int, ...]]:
        """All (step, ...) rows of numbers in the journal."""
        reader = JournalReader(self.path)
        found: list[tuple[int, ...]] = []
        for row in reader.rows(0, max_bytes=1 << 30):
            for block in read_points(row.data, reader.tag_sets(row.client_id, refresh=True)):
                if isinstance(block, ScalarBlock):
                    found += [(int(s),) for s in block.steps]
        reader.close()
        return found

    def until(self, condition: object) -> None:
        """Wait for a condition of the snapshot."""
        assert callable(condition)
        deadline = time.monotonic() + 20
        while not condition(self.ingest.snapshot):
            assert time.monotonic() < deadline, self.ingest.snapshot
            time.sleep(0.005)


class Peer:
    """A client by hand."""

    def __init__(self, service: Service, uuid: bytes = b"a" * 16, **hello: Any) -> None:
        self.socket = service.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(service.endpoint)
        service.sockets.append(self.socket)
        spec = RunSpec(str(hello.pop("run", "r")), "/logs")
        self.hello = Hello(uuid, 1, 1, spec, **hello)

    def ask(self, message: Message) -> Message:
        self.socket.send(encode(message))
        return self.next()

    def next(self) -> Message:
        assert self.socket.poll(10_000), "no answer"
        return decode(self.socket.recv())

    def until(self, kind: type[Message]) -> Message:
        while True:
            message = self.next()
            if isinstance(message, kind):
                return message

    def greet(self) -> Welcome:
        welcome = self.ask(self.hello)
        assert isinstance(welcome, Welcome)
        self.socket.send(encode(Tags(0, (("loss",),))))
        return welcome


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    FailingJournal.full = FailingJournal.unreadable = False
    FailingJournal.fast.set()
    with zmq.Context() as context:
        service = Service(tmp_path, context)
        yield service
        FailingJournal.full = FailingJournal.unreadable = False
        FailingJournal.fast.set()
        service.stop()
        for socket in service.sockets:
            socket.close(linger=0)


def _batch(first: int, last: int) -> Batch:
    data = b"".join(encode_scalars(Scalars(0, s, 1, (0.5,))) for s in range(first, last + 1))
    return Batch(first, last, data)


def test_a_batch_is_acknowledged_once_it_is_journalled(service: Service) -> None:
    peer = Peer(service)
    assert peer.greet().durable_seq == 0
    assert peer.ask(_batch(1, 3)) == Ack(3, 0, 1 << 20)
    assert service.rows() == [(1,), (2,), (3,)]


def test_overlaps_and_repetitions_are_journalled_once(service: Service) -> None:
    peer = Peer(service)
    peer.greet()
    for first, last in [(1, 3), (1, 3), (2, 5), (5, 5), (4, 6)]:
        answer = peer.ask(_batch(first, last))
        assert isinstance(answer, Ack)
    assert service.rows() == [(s,) for s in range(1, 7)]


def test_what_comes_too_early_is_refused_with_what_is_awaited(service: Service) -> None:
    peer = Peer(service)
    peer.greet()
    answer = peer.ask(_batch(5, 6))
    assert isinstance(answer, Nack)
    assert (answer.code, answer.first_seq) == ("out_of_order", 1)
    assert service.rows() == []


def test_parts_make_one_record(service: Service) -> None:
    peer = Peer(service)
    peer.greet()
    record = Value("histogram", "h", 7, 1, {}, [Array("uint8", (300_000,), bytes(300_000))])
    data = b"".join(encode_value(record)[1])
    half = len(data) // 2
    peer.socket.send(encode(Part(1, 0, len(data), data[:half])))
    assert peer.next() == Ack(0, 0, 1 << 20)  # a sign of life
    assert peer.ask(Part(1, half, len(data), data[half:])) == Ack(1, 0, 1 << 20)


def test_gaps_are_counted_as_dropped(service: Service) -> None:
    peer = Peer(service)
    peer.greet()
    assert peer.ask(Gap(1, 10, "outbox full")) == Ack(10, 10, 1 << 20)
    assert peer.ask(_batch(11, 11)) == Ack(11, 10, 1 << 20)


@pytest.mark.parametrize(
    "data", [b"x" * 8, encode_scalars(Scalars(0, 1, 1, (0.5,)))[:-8], _batch(1, 2).data]
)
def test_records_that_cannot_be_taken_are_refused_and_the_next_ones_taken(
    service: Service, data: bytes
) -> None:
    peer = Peer(service)
    peer.greet()
    answer = peer.ask(Batch(1, 1, data))
    assert isinstance(answer, Nack)
    assert (answer.code, answer.first_seq, answer.last_seq) == ("refused", 1, 1)
    assert isinstance(peer.ask(Gap(1, 1, "refused")), Ack)
    assert peer.ask(_batch(2, 2)) == Ack(2, 1, 1 << 20)


def test_tag_sets_that_were_lost_are_asked_for_and_the_records_taken(service: Service) -> None:
    peer = Peer(service)
    assert isinstance(peer.ask(peer.hello), Welcome)
    assert peer.ask(_batch(1, 2)) == Nack("unknown_session", "a tag set is not defined")
    peer.greet()
    assert peer.ask(_batch(1, 2)) == Ack(2, 0, 1 << 20)
    assert service.rows() == [(1,), (2,)]


def test_who_did_not_say_hello_is_asked_to(service: Service) -> None:
    answer = Peer(service).ask(_batch(1, 1))
    assert isinstance(answer, Nack)
    assert answer.code == "unknown_session"


def test_rubbish_is_answered_and_counted(service: Service) -> None:
    peer = Peer(service)
    for rubbish, kind, code in [
        (b"SDS\x01\xc1", Nack, "malformed"),
        (b"GET / HTTP/1.1", Reject, "no_protocol"),
        (b"SDS\x63\x90", Reject, "version"),
    ]:
        peer.socket.send(rubbish)
        answer = peer.next()
        assert isinstance(answer, kind)
        assert answer.code == code
    assert isinstance(peer.ask(peer.hello), Welcome)
    service.until(lambda s: s.refused_frames == 3)
    kept = sorted(os.listdir(service.quarantine))
    assert [Path(service.quarantine, name).read_bytes() for name in kept if ".bin" in name] == [
        b"SDS\x01\xc1",
        b"GET / HTTP/1.1",
        b"SDS\x63\x90",
    ]


def test_a_message_of_two_frames_ends_its_connection_alone(service: Service) -> None:
    beside, peer = Peer(service), Peer(service, b"b" * 16)
    beside.greet()
    peer.greet()
    peer.socket.send_multipart([b"a", b"b"])
    answer = peer.next()
    assert isinstance(answer, Reject)
    assert answer.code == "multipart"
    assert beside.ask(_batch(1, 1)) == Ack(1, 0, 1 << 20)
    assert isinstance(peer.ask(peer.hello), Welcome)  # over another connection


def test_a_full_house_is_said(service: Service) -> None:
    for uuid in (b"a" * 16, b"b" * 16):
        Peer(service, uuid).greet()
    answer = Peer(service, b"c" * 16).ask(Peer(service, b"c" * 16).hello)
    assert isinstance(answer, Reject)
    assert answer.code == "full"


def test_a_second_process_with_the_same_uuid_is_rejected(service: Service) -> None:
    Peer(service).greet()
    twin = Peer(service)
    twin.hello = Hello(b"a" * 16, 2, 1, RunSpec("r", "/logs"))
    answer = twin.ask(twin.hello)
    assert isinstance(answer, Reject)
    assert answer.code == "duplicate_client"


def test_a_restarted_daemon_knows_what_it_has(service: Service) -> None:
    peer = Peer(service)
    peer.greet()
    peer.ask(_batch(1, 3))
    service.restart()
    again = Peer(service)
    assert again.greet().durable_seq == 3
    assert again.ask(_batch(2, 4)) == Ack(4, 0, 1 << 20)
    assert service.rows() == [(s,) for s in range(1, 5)]


def test_bye_is_acknowledged_and_ends_the_client(service: Service) -> None:
    peer = Peer(service)
    peer.greet()
    peer.ask(_batch(1, 1))
    assert peer.ask(Bye(1)) == ByeAck(1)
    service.until(lambda s: [c.row.state for c in s.clients] == ["finished"])


def test_a_full_disk_holds_clients_and_loses_nothing(service: Service) -> None:
    peer = Peer(service)
    peer.greet()
    peer.ask(_batch(1, 1))
    FailingJournal.full = True
    peer.socket.send(encode(_batch(2, 2)))
    service.until(lambda s: s.storage_error is not None)
    # It forgot us with the round that failed, and says what it really has: no credit.
    assert peer.ask(Ping()) == Nack("unknown_session", "say HELLO first")
    FailingJournal.full = False
    welcome = peer.ask(peer.hello)
    assert isinstance(welcome, Welcome)
    assert (welcome.durable_seq, welcome.dropped) == (1, 0)
    peer.socket.send(encode(Tags(0, (("loss",),))))
    assert isinstance(peer.ask(_batch(2, 2)), Ack)
    service.until(lambda s: s.storage_error is None)
    peer.socket.send(encode(Ping()))
    assert isinstance(peer.until(Pong), Pong)
    assert service.rows() == [(1,), (2,)]


def test_a_disk_that_cannot_be_read_either_is_waited_for(service: Service) -> None:
    """What the journal has of a client is never taken for nothing."""
    peer = Peer(service)
    peer.greet()
    peer.ask(_batch(1, 2))
    FailingJournal.full = FailingJournal.unreadable = True
    peer.socket.send(encode(_batch(3, 3)))
    stranger = Peer(service, b"b" * 16, run="another")
    stranger.socket.send(encode(stranger.hello))
    service.until(lambda s: s.storage_error == "disk I/O error")
    peer.socket.send(encode(peer.hello))
    assert not peer.socket.poll(300), "nobody can say what is durable"
    FailingJournal.full = FailingJournal.unreadable = False
    service.until(lambda s: s.storage_error != "disk I/O error")
    again = Peer(service)
    welcome = again.ask(replace(again.hello, connection=2))
    assert isinstance(welcome, Welcome)
    assert welcome.durable_seq == 2
    assert service.ingest.is_alive()


def test_a_goodbye_is_acknowledged_only_once_it_is_stored(service: Service) -> None:
    """Who hears of it deletes its outbox, and with that its last books."""
    peer = Peer(service)
    peer.greet()
    assert isinstance(peer.ask(_batch(1, 2)), Ack)
    FailingJournal.full = True
    bye = Bye(2, Books(emitted=9, dropped=7, rejected=1))
    peer.socket.send(encode(bye))
    service.until(lambda s: s.storage_error is not None)
    assert peer.ask(Ping()) == Nack("unknown_session", "say HELLO first"), "not a ByeAck"
    FailingJournal.full = False
    peer.hello = replace(peer.hello, connection=2, acked_seq=2)
    peer.greet()
    peer.socket.send(encode(bye))
    assert peer.until(ByeAck) == ByeAck(2)
    service.restart()
    (entry,) = service.ingest.snapshot.clients
    assert entry.row.state == "finished"
    assert of_client(entry) == RunBooks(9, 2, 0, 7, 1)


def test_what_is_unaccounted_for_and_elsewhere_outlives_the_daemon(service: Service) -> None:
    peer = Peer(service)
    peer.hello = replace(peer.hello, acked_seq=5, acked_dropped=1)
    peer.greet()
    assert isinstance(peer.ask(_batch(6, 6)), Ack)
    # It has not said all: two records more were emitted than are anywhere.
    assert peer.ask(Bye(6, Books(emitted=8, dropped=1))) == ByeAck(6)
    wanted = RunBooks(emitted=8, durable=5, dropped=1, unaccounted=2, elsewhere=4)
    for _ in range(2):
        (entry,) = service.ingest.snapshot.clients
        assert of_client(entry) == wanted
        service.restart()


def test_a_dead_clients_outbox_is_delivered_once_and_removed(service: Service) -> None:
    peer = Peer(service)
    peer.greet()
    peer.ask(_batch(1, 2))
    os.makedirs(service.outboxes)
    path = os.path.join(service.outboxes, "x.outbox")
    buffer = bytearray(1 << 20)
    outbox = Outbox.create(memoryview(buffer), peer.hello)
    outbox.define_tags(("loss",))
    data = bytes(_batch(1, 3).data)
    outbox.open(0, SMALL, 1)
    base = outbox.base(0)
    buffer[base : base + len(data)] = data
    outbox.table[outbox.used_word(0)] = len(data)
    Path(path + ".new").write_bytes(buffer)
    os.rename(path + ".new", path)
    service.until(lambda s: [c.row.state for c in s.clients] == ["lost"])
    service.until(lambda _: not os.path.exists(path))
    assert service.rows() == [(1,), (2,), (3,)]


def _harmed(peer: Peer, harm: str) -> bytes:
    """An outbox with three records, and damage that only shows when it is read."""
    buffer = bytearray(1 << 20)
    outbox = Outbox.create(memoryview(buffer), peer.hello)
    outbox.define_tags(("loss",))
    data = bytes(_batch(1, 3).data)
    for index, first_seq in ((0, 1), (1, 4)):
        outbox.open(index, SMALL, first_seq)
        base = outbox.base(index)
        buffer[base : base + len(data)] = data
        outbox.table[outbox.used_word(index)] = len(data)
    if harm == "record":
        buffer[outbox.base(1) : outbox.base(1) + 4] = bytes(4)
    elif harm == "tags":
        buffer[outbox.layout.tags_at] = 255
    elif harm == "books":
        outbox.words[LOST] = outbox.words[REJECTED] = (1 << 64) - 1
    return bytes(buffer)


@pytest.mark.parametrize(("harm", "rows"), [("record", 3), ("tags", 0), ("books", 6)], ids=str)
def test_an_outbox_that_is_damaged_within_is_read_up_to_there_and_put_aside(
    service: Service, harm: str, rows: int
) -> None:
    peer = Peer(service)
    os.makedirs(service.outboxes)
    path = Path(service.outboxes, "x.outbox")
    path.with_suffix(".new").write_bytes(_harmed(peer, harm))
    path.with_suffix(".new").rename(path)
    service.until(lambda s: [c.row.state for c in s.clients] == ["lost"])
    service.until(lambda _: not path.exists())
    assert len(service.rows()) == rows
    assert os.listdir(service.outboxes) == ([] if harm == "books" else ["x.outbox.damaged"])
    assert service.ingest.is_alive()
    peer.greet()


def test_a_journal_that_turns_out_to_be_damaged_is_put_aside_by_the_next_daemon(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_check, "_CHECKED_BYTES", 0)  # as of one that is too large
    service.stop()
    with closing(sqlite3.connect(service.path)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'batches_with_values'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with open(service.path, "r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    service.ingest = service._new()
    peer = Peer(service)
    peer.greet()
    assert peer.ask(_batch(1, 2)) == Ack(2, 0, 1 << 20), "nobody has met it yet"
    value = b"".join(encode_value(Value("text", "t", 3, 1, {"text": "x"}))[1])
    peer.socket.send(encode(Batch(3, 3, value)))
    wait_until(lambda: not service.ingest.is_alive(), 20, "ingest goes on")
    assert "damaged" in service.said[-1]
    said: list[str] = []
    Journal(service.path, log=said.append).close()
    assert "starting a new one" in said[0]
    assert service.rows() == []
    Journal(service.path, log=said.append).close()
    assert len(said) == 1, "the new one is not put aside, too"


def test_a_damaged_outbox_is_put_aside(service: Service) -> None:
    os.makedirs(service.outboxes)
    Path(service.outboxes, "y.outbox").write_bytes(b"rubbish" * 1000)
    wanted = service.ingest.scan()
    service.until(lambda s: s.scanned >= wanted)
    assert os.listdir(service.outboxes) == ["y.outbox.damaged"]
    assert "damaged" in service.said[0]


def test_what_the_daemon_says_itself_is_journalled_with_its_cursor(service: Service) -> None:
    peer = Peer(service)
    peer.greet()
    moments = Value("moments", "rep", 5, 1, {"n": 2}, [])
    data = b"".join(encode_value(moments)[1])
    assert peer.ask(Batch(1, 1, data)) == Ack(1, 0, 1 << 20)
    (run,) = service.ingest.snapshot.runs.values()
    assert (run.derived_row, run.to_derive_row) == (0, 1)
    said = DaemonPoints(
        run.id, "derive", [(5, 1, {"rep_std": 1.0})], derived_row=1, derived=DeriveState(1, 1)
    )
    service.ingest.submit(said)
    service.until(lambda s: s.runs[run.id].derived_row == 1)
    service.ingest.submit(said)  # a deriver that was restarted says it again
    service.ingest.submit(DaemonPoints(run.id, "system", [(6, 1, {"system/cpu_percent": 3.0})]))
    service.until(lambda s: s.last_row == 3)
    assert service.rows() == [(5,), (6,)]
    service.restart()
    (run,) = service.ingest.snapshot.runs.values()
    assert (run.derived_row, run.to_derive_row) == (1, 1)


def test_what_is_not_committed_is_not_seen(service: Service) -> None:
    # The derivers would be told of a row that they cannot read yet, and never again.
    peer = Peer(service)
    peer.greet()
    data = b"".join(encode_value(Value("moments", "rep", 5, 1))[1])
    assert peer.ask(Batch(1, 1, data)) == Ack(1, 0, 1 << 20)
    before = service.ingest.snapshot.runs[peer_run(service)]
    FailingJournal.fast.clear()
    peer.socket.send(encode(Batch(2, 2, data)))
    writing = service.ingest._clients.runs[before.id]
    wait_until(lambda: writing.to_derive_row == 2, 20, "the record was not taken")
    assert service.ingest.snapshot.runs[before.id].to_derive_row == 1
    FailingJournal.fast.set()
    assert peer.next() == Ack(2, 0, 1 << 20)
    service.until(lambda s: s.runs[before.id].to_derive_row == 2)
    assert before.to_derive_row == 1


def _alarm(step: int, state: str) -> tuple[Value, dict[str, bytes]]:
    """A transition as the derivers' process says it, and the state that is stored with it."""
    info = {"representation": "rep", "state": state, "reason": "it fell", "text": ""}
    stored = TagState(State(state), seen=step, changed_step=step, reason="it fell")
    return Value("alarm", "sidestep/alarm/rep", step, 1, info), {"rep": packed(stored)}


def _said(run_id: int, row: int, after: int, state: str) -> DaemonPoints:
    alarm, states = _alarm(10 * row, state)
    return DaemonPoints(
        run_id,
        "derive",
        (),
        [alarm],
        derived_row=row,
        derived=DeriveState(row, row),
        derived_after=after,
        alarm_states=states,
    )


def test_an_alarm_is_sent_once_it_is_durable_and_told_to_who_comes_later(service: Service) -> None:
    peer, other = Peer(service), Peer(service, b"b" * 16, run="another")
    peer.greet()
    other.greet()
    data = b"".join(encode_value(Value("moments", "rep", 5, 1))[1])
    assert peer.ask(Batch(1, 1, data)) == Ack(1, 0, 1 << 20)
    run_id = peer_run(service)
    service.ingest.submit(_said(run_id, 1, 0, "COLLAPSED"))
    sent = Alarm("rep", "COLLAPSED", 10, "it fell")
    assert peer.until(Alarm) == sent
    service.ingest.submit(_said(run_id, 1, 0, "COLLAPSED"))  # by a deriver that was restarted
    assert peer.ask(Ping()) == Pong()
    assert other.ask(Ping()) == Pong()
    # After a restart of the daemon the state is known, and said with the greeting.
    service.restart()
    late = Peer(service, b"c" * 16)
    late.greet()
    assert late.next() == sent
    assert service.ingest.snapshot.runs[run_id].alarms["rep"].state is State.COLLAPSED


def test_many_clients_are_asked_for_a_slower_pace(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [pace_ms(clients) for clients in (1, 31, 32, 64, 256)] == [0, 0, 0, 51, 204]
    monkeypatch.setattr(pace, "_EACH_MS", 15)
    peers = [Peer(service, bytes([n]) * 16) for n in range(2)]
    for peer in peers:
        peer.greet()
    peers[0].socket.send(encode(Ping()))
    assert peers[0].until(Pong) == Pong(30)


def peer_run(service: Service) -> int:
    return next(id_ for id_, run in service.ingest.snapshot.runs.items() if run.spec.name == "r")


def test_what_follows_on_something_that_was_lost_is_not_journalled(service: Service) -> None:
    peer = Peer(service)
    peer.greet()
    data = b"".join(encode_value(Value("moments", "rep", 5, 1))[1])
    for seq in (1, 2):
        peer.socket.send(encode(Batch(seq, seq, data)))
        assert peer.until(Ack) == Ack(seq, 0, 1 << 20)
    run_id = peer_run(service)
    FailingJournal.full = True
    service.ingest.submit(_said(run_id, 1, 0, "WATCH"))
    service.until(lambda s: s.lost_rounds == 1)
    FailingJournal.full = False
    # The process that said it goes on, until it is told to begin again.
    service.ingest.submit(_said(run_id, 2, 1, "COLLAPSED"))
    service.ingest.submit(_said(run_id, 1, 0, "WATCH"))
    service.until(lambda s: s.runs[run_id].derived_row == 1)
    assert service.ingest.snapshot.runs[run_id].alarms["rep"].state is State.WATCH
    reader = JournalReader(service.path)
    row, states = reader.derived("derive", run_id)
    reader.close()
    assert (row, states) == (1, _alarm(10, "WATCH")[1])


def test_who_speaks_for_another_machine_is_no_client_of_the_run(service: Service) -> None:
    trainer = Peer(service)
    trainer.greet()
    assert trainer.ask(_batch(1, 3)) == Ack(3, 0, 1 << 20)
    node = Peer(service, b"n" * 16, node=True, via=(7,))
    node.greet()
    assert node.ask(_batch(1, 9)) == Ack(9, 0, 1 << 20)
    service.until(lambda snapshot: len(snapshot.clients) == 2)
    assert isinstance(trainer.ask(Bye(3, Books(3))), ByeAck)
    service.until(lambda snapshot: not snapshot.live_runs())
    (run,) = service.ingest.snapshot.runs.values()
    assert (run.records, run.last_step) == (3, 3)
    assert [one["clients"] for one in status.runs(service.ingest.snapshot, _NO_SINKS)] == [0]
    service.restart()
    (run,) = service.ingest.snapshot.runs.values()
    assert (run.records, run.last_step) == (3, 3)
    again = Peer(service, b"n" * 16, node=True, via=(7,))
    assert again.greet().durable_seq == 9  # what was known of it is known
    assert status.runs(service.ingest.snapshot, _NO_SINKS)[0]["state"] == "finished"


class _NoSinks:
    def sinks(self, _run: int) -> list[object]:
        return []


_NO_SINKS: Any = _NoSinks()


def test_a_client_that_is_said_to_be_lost_is(service: Service) -> None:
    peer = Peer(service, via=(7,))
    peer.greet()
    assert isinstance(peer.ask(_batch(1, 3)), Ack)
    assert isinstance(peer.ask(Bye(3, Books(5, 2), lost=True)), ByeAck)
    service.until(lambda snapshot: snapshot.clients[0].row.state == "lost")
    books = of_client(service.ingest.snapshot.clients[0])
    assert (books.emitted, books.durable, books.dropped, books.unaccounted) == (5, 3, 2, 0)


def test_who_has_come_through_here_already_is_refused_and_nobody_else_harmed(
    service: Service,
) -> None:
    peer = Peer(service)
    peer.greet()
    with closing(JournalReader(service.path)) as reader:
        identity = reader.identity()
    circle = Peer(service, via=(7, identity))
    answer = circle.ask(replace(circle.hello, connection=1000))
    assert isinstance(answer, Reject)
    assert answer.code == "loop"
    assert peer.ask(_batch(1, 3)) == Ack(3, 0, 1 << 20)  # it is connected still
    deep = Peer(service, b"d" * 16, via=tuple(range(16)))
    answer = deep.ask(deep.hello)
    assert isinstance(answer, Reject)
    assert "16 daemons" in answer.reason


def test_a_row_knows_its_first_number_and_how_its_client_introduced_itself(
    service: Service,
) -> None:
    """What passing on is made of."""
    peer = Peer(service, rank=3, world_size=4, host="here", pid=5)
    peer.greet()
    peer.ask(_batch(1, 3))
    peer.ask(Gap(4, 6, "full"))
    peer.ask(_batch(7, 8))
    with closing(JournalReader(service.path)) as reader:
        assert [(row.first_seq, row.records) for row in reader.rows(0)] == [(1, 3), (7, 2)]
        (client,) = Passengers(reader, 1, "there").all().values()
    assert (client.durable_seq, client.dropped) == (8, 3)
    hello = client.hello
    assert (hello.rank, hello.world_size, hello.host, hello.pid) == (3, 4, "here", 5)

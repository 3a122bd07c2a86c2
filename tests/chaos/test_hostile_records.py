"""Messages and records that are malformed: refused one by one, counted, samples kept."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict

import msgpack
import pytest
import zmq

from sidestep import client
from sidestep.proto import Ack, Batch, Gap, Message, Nack, Part, Pong, Reject, RunSpec, encode
from sidestep.proto.records import Scalars, Value, encode_scalars, encode_value
from tests.support.beside import Beside
from tests.support.fixtures import Connect
from tests.support.hostile import MIB, MemoryOf, Peer, await_refused, batch, refused
from tests.support.oracle import assert_balanced, assert_exactly, points, read_scalars
from tests.support.sandbox import Daemon, Sandbox
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

PREFIX = b"SDS\x01"


@pytest.fixture
def peer(sandbox: Sandbox, daemon: Daemon) -> Iterator[Peer]:
    with zmq.Context() as context:
        made = Peer(context, sandbox.paths.data_endpoint, RunSpec("hostile", str(sandbox.logs)))
        made.greet("x")
        yield made
        made.close()


HOSTILE = {
    "no-messagepack": b"\xc1",
    "torn": encode(Gap(1, 2, "x"))[4:-3],
    "left-over": msgpack.packb(["ping", {}]) + b"\0",
    "deep-lists": b"\x91" * 500_000 + b"\xc0",
    "deep-maps": b"\x81\xa1a" * 300_000 + b"\xc0",
    "claims-4G-items": b"\xdd\xff\xff\xff\xff",
    "claims-4G-bytes": b"\xc6\xff\xff\xff\xff",
    "claims-4G-pairs": b"\xdf\xff\xff\xff\xff",
    "million-empty-maps": b"\xdd" + struct.pack(">I", 1_000_000) + b"\x80" * 1_000_000,
    "too-wide": msgpack.packb(["ping", {"x": [0] * 8193}]),
    "extension": msgpack.packb(["ping", {"x": msgpack.ExtType(5, b"code")}]),
    "timestamp": msgpack.packb(["ping", {"x": msgpack.Timestamp(5)}]),
    "keys-no-text": msgpack.packb(["ping", {5: 1}]),
    "no-utf8": msgpack.packb(["ping", {"x": b"\xff\xfe"}], use_bin_type=False),
    "unknown-kind": msgpack.packb(["format-disk", {}]),
    "daemons-own-kind": msgpack.packb(["welcome", {}]),
    "kind-no-text": msgpack.packb([5, {}]),
    "fields-no-map": msgpack.packb(["ping", []]),
    "batch-lacks": msgpack.packb(["batch", {"first_seq": 1}]),
    "batch-types": msgpack.packb(["batch", {"first_seq": "1", "last_seq": 1.5, "data": "x"}]),
    "batch-backwards": msgpack.packb(["batch", {"first_seq": 9, "last_seq": 1, "data": b"x"}]),
    "batch-beyond": msgpack.packb(["gap", {"first_seq": 1 << 63, "last_seq": 1 << 63}]),
    "part-huge": msgpack.packb(["part", {"seq": 1, "offset": 0, "total": 1 << 40, "data": b"x"}]),
    "tags-empty": msgpack.packb(["tags", {"first_id": 0, "tag_sets": [[""]]}]),
    "tags-long": msgpack.packb(["tags", {"first_id": 0, "tag_sets": [["x" * 1025]]}]),
    "no-integer": msgpack.packb(["gap", {"first_seq": float("nan"), "last_seq": 1}]),
}  # fmt: skip


def test_hostile_messagepack(sandbox: Sandbox, daemon: Daemon, beside: Beside, peer: Peer) -> None:
    memory = MemoryOf(daemon.pid)
    for name, body in HOSTILE.items():
        peer.socket.send(PREFIX + body)
        answer = peer.next()
        assert isinstance(answer, Nack), (name, answer)
        assert answer.code in {"malformed", "too_large", "unknown_kind"}, (name, answer)
        assert 0 < len(answer.reason) < 500
        memory.look()
    # The connection is the same, and good for what is right.
    assert isinstance(peer.ask(batch(1, 3)), Ack)
    print(f"grown by {memory.look() / MIB:.1f} MiB at the most")
    assert memory.look() < 128 * MIB
    wait_until(lambda: sum(refused(sandbox, "frames").values()) == len(HOSTILE), 20, sandbox.status)
    found = sandbox.status()["daemon"]["refused"]
    samples = sorted(sandbox.state.glob("quarantine/*.bin"))
    assert len(samples) == found["samples"] == 16
    assert max(sample.stat().st_size for sample in samples) <= 64 << 10
    bodies = [(PREFIX + body)[: 64 << 10] for body in HOSTILE.values()]
    assert [sample.read_bytes() for sample in samples] == bodies[:16]
    assert "refused: malformed" in samples[0].with_suffix(".txt").read_text()
    assert found["quarantine"] == str(sandbox.state / "quarantine")
    assert "refused 1 frame(s)" in daemon.said()
    beside.served()


def test_a_flood_of_rubbish(sandbox: Sandbox, daemon: Daemon, beside: Beside, peer: Peer) -> None:
    """Thousands of mutants, answered or not: counted all, sampled a few, logged seldom."""
    rng = random.Random(21)
    good = [encode(m) for m in (batch(1, 20), Gap(1, 2, "x"), Part(1, 0, 99, b"x" * 50))]
    memory = MemoryOf(daemon.pid)
    many = 4000
    for i in range(many):
        frame = bytearray(rng.choice(good))
        for _ in range(rng.randrange(1, 6)):
            frame[rng.randrange(4, len(frame))] = rng.randrange(256)
        peer.socket.send(PREFIX + (b"\xc1" if i % 2 else bytes(frame[4:])))
        while peer.socket.poll(0):
            peer.socket.recv()
        memory.look()
    wait_until(
        lambda: refused(sandbox, "frames").get("malformed", 0) >= many // 2,
        30,
        sandbox.status,
    )
    assert memory.look() < 64 * MIB
    files = list(sandbox.state.glob("quarantine/*"))
    assert 2 <= len(files) <= 32
    assert sum(file.stat().st_size for file in files) <= 16 * (65 << 10)
    assert daemon.said().count("refused") < 100
    beside.served()


def bad_value() -> bytes:
    """A record of which only the length is right."""
    whole = b"".join(encode_value(Value("text", "note", 1, 1, {"text": "x" * 40}))[1])
    return whole[:32] + b"\xc1" * (len(whole) - 32)


def row(seq: int) -> bytes:
    return encode_scalars(Scalars(0, seq, 1, (seq / 7,)))


def test_one_malformed_record_of_a_batch(sandbox: Sandbox, beside: Beside, peer: Peer) -> None:
    bad, whole = bad_value(), b"".join(map(row, range(1, 11)))
    at = 4 * len(row(1))
    data = whole[:at] + bad + bad + whole[at + 2 * len(row(1)) :]  # 5 and 6 of ten
    peer.say(Batch(1, 10, data))
    answers = [peer.next(), peer.next()]
    nack = next(answer for answer in answers if isinstance(answer, Nack))
    assert (nack.code, nack.first_seq, nack.last_seq) == ("refused", 5, 6)
    ack = next(answer for answer in answers if isinstance(answer, Ack))
    assert (ack.durable_seq, ack.dropped) == (4, 0)
    # As a client does: it announces the gap and sends what follows, with what overlaps.
    assert _last_ack(peer, Gap(5, 6, "refused")) == (6, 2)
    assert _last_ack(peer, Batch(7, 10, whole[6 * len(row(1)) :])) == (10, 2)
    # The whole of it once more, as after a lost ACK: nothing comes twice, and nothing is refused.
    assert _last_ack(peer, Batch(1, 10, data)) == (10, 2)
    await_refused(sandbox, "records", malformed=2)
    sandbox.drain()
    expected = points([("x", seq, seq / 7) for seq in range(1, 11) if seq not in (5, 6)])
    assert_exactly(read_scalars(sandbox.event_files("hostile")), expected)
    books = sandbox.run_status("hostile")["records"]  # type: ignore[index]
    assert (books["durable"], books["dropped"]) == (8, 2)
    beside.served()


def _last_ack(peer: Peer, message: Message) -> tuple[int, int]:
    answer = peer.ask(message)
    assert isinstance(answer, Ack), answer
    return answer.durable_seq, answer.dropped


def test_a_client_whose_memory_was_damaged(
    sandbox: Sandbox, beside: Beside, connect: Connect
) -> None:
    """Bad records among good ones in a real outbox: those alone are dropped, in both books."""
    made: client.Client = connect("damaged")
    rows: list[tuple[str, int, float]] = []
    bad = bad_value()
    for step in range(200):
        made.emit({"v": step / 7}, step=step)
        rows.append(("v", step, step / 7))
        if step % 20 == 10:
            # What an `emit` would have put there, but for some bytes of it.
            made._outbox.put_record(len(bad), [bad])
    assert made.finish(60)
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("damaged")), points(rows))
    stats = made.stats()
    assert_balanced(asdict(stats))
    assert (stats.dropped, stats.acked, stats.held) == (10, 200, 0)
    assert stats.dropped_bytes == 10 * len(bad)
    assert stats.acked_bytes == 200 * len(encode_scalars(Scalars(0, 0, 0, (0.5,))))
    books = sandbox.run_status("damaged")["records"]  # type: ignore[index]
    assert (books["durable"], books["dropped"], books["held"]) == (200, 10, 0)
    await_refused(sandbox, "records", malformed=10)
    beside.served()


DEAD = """
import os, signal
from sidestep import client
made = client.connect("dead", autostart=False)
bad = bytes.fromhex("%s")
for step in range(100):
    made.emit({"v": step / 7}, step=step)
    if step %% 10 == 5:
        made._outbox.put_record(len(bad), [bad])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_dead_clients_damaged_records(sandbox: Sandbox) -> None:
    subprocess.run(
        [sys.executable, "-c", DEAD % bad_value().hex()], env=sandbox.env(), timeout=60, check=False
    )
    sandbox.serve()
    sandbox.drain()
    expected = points([("v", step, step / 7) for step in range(100)])
    assert_exactly(read_scalars(sandbox.event_files("dead")), expected)
    books = sandbox.run_status("dead")["records"]  # type: ignore[index]
    assert (books["durable"], books["dropped"], books["held"]) == (100, 10, 0)
    await_refused(sandbox, "records", malformed=10)
    assert sandbox.outboxes() == []


def test_records_of_every_wrong_kind(sandbox: Sandbox, beside: Beside, peer: Peer) -> None:
    """Each is refused by its number; the tag set that nobody defined, after it was asked for."""
    value = b"".join(encode_value(Value("text", "note", 1, 1, {"text": "x"}))[1])
    wrong = [
        b"\0" * 8,
        struct.pack("<IBBHQ", 16, 9, 0, 0, 0),
        struct.pack("<IBBH", 1 << 30, 1, 0, 0) + bytes(24),
        row(1)[:12] + struct.pack("<I", 1 << 31) + row(1)[16:],
        value[:24] + struct.pack("<I", 0xFFFFFFF0) + value[28:],
        value.replace(b"text", b"\xc1\xc1\xc1\xc1", 1),
        row(1) + row(1),
    ]
    for seq, data in enumerate(wrong, 1):
        answer = peer.ask(Batch(seq, seq, data))
        assert isinstance(answer, Nack), data
        assert (answer.code, answer.first_seq, answer.last_seq) == ("refused", seq, seq)
        assert isinstance(peer.ask(Gap(seq, seq, "refused")), Ack)
    seq = len(wrong) + 1
    for _ in range(5):
        answer = peer.ask(Batch(seq, seq, row(1)[:8] + b"\x09" + row(1)[9:]))
        assert isinstance(answer, Nack)
        assert answer.code == "unknown_session"
        peer.greet("x")
    answer = peer.ask(Batch(seq, seq, row(1)[:8] + b"\x09" + row(1)[9:]))
    assert isinstance(answer, Nack)
    assert answer.code == "refused"
    await_refused(sandbox, "records", malformed=len(wrong), undefined=1)
    assert not isinstance(peer.ask(batch(seq, seq)), (Nack, Reject, Pong))
    beside.served()

"""Any bytes in the place of a dead client's outbox are adopted up to the damage, and end."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

from sidestep.proto import Batch, Gap, Part, RemoteProtocolError, ServerSession, Tags, encode
from sidestep.proto.limits import MAX_SEQ
from sidestep.proto.segments import Outbox
from sidestep.sidecar.ingest.adopt import Adoption, find_dead
from tests.unit.client.outboxes import Box, new_box

from .. import scratch
from ..mutator import mutate_bytes
from ..packing import dense, sparse

_MAX_BYTES = 1 << 20


def check(data: bytes) -> None:
    """A file that lies where outboxes do, as `packing.sparse` describes it."""
    buffer = dense(data, _MAX_BYTES)
    _walked(buffer)
    _adopted(buffer)


def _walked(buffer: bytes) -> None:
    """The layout alone: ordered, bounded, and nothing but `RemoteProtocolError`."""
    try:
        outbox = Outbox.attach(memoryview(buffer))
        hello = outbox.hello()
        encode(hello)
        for tags in outbox.tag_sets():
            encode(Tags(0, (tags,)))
        nbytes, last = 0, hello.acked_seq
        for message in outbox.messages():
            encode(message)
            nbytes += 0 if isinstance(message, Gap) else len(message.data)
            first, end = (
                (message.seq, message.seq)
                if isinstance(message, Part)
                else (message.first_seq, message.last_seq)
            )
            assert end >= last or end <= hello.acked_seq, "numbers rise"
            last = max(last, end)
            assert 0 < first <= end <= MAX_SEQ
            assert nbytes <= len(buffer), "no byte is read twice"
    except RemoteProtocolError:
        pass


def _adopted(buffer: bytes) -> None:
    """As the daemon does it: found by its lock, read in rounds, put aside or removed."""
    folder = scratch.empty("outboxes")
    path = folder / "x.outbox"
    path.write_bytes(buffer)
    said: list[str] = []
    for adoption in find_dead([str(folder)], (), said.append):
        _read(adoption, len(buffer))
        assert adoption.exhausted
        adoption.remove()
        assert not path.exists(), "or it would be found again, for ever"
    if path.exists():
        raise AssertionError("neither adopted nor put aside")
    assert len(os.listdir(folder)) <= 1


def _read(adoption: Adoption, size: int) -> None:
    session = ServerSession(1)
    session.receive(adoption.hello)
    rounds = 0
    while not adoption.exhausted:
        for message in adoption.take(64 << 10):
            assert isinstance(message, (Tags, Batch, Part, Gap))
            session.receive(message)
        session.committed()
        rounds += 1
        assert rounds <= 2 + size // 64
    books = adoption.books(session.taken_seq, session.taken_dropped)
    for number in (books.emitted, books.dropped, books.rejected):
        assert 0 <= number <= MAX_SEQ, "what SQLite can hold"


mutate = mutate_bytes


def seeds() -> Iterator[bytes]:
    """Outboxes of a real client: numbers, a large value, what was dropped and acknowledged."""
    yield sparse(new_box().memory)
    box = new_box()
    for step in range(1, 5):
        box.put_row(step)
    yield sparse(box.memory)
    box.put_value(5, 300)
    box.put_row(6, count=3)
    yield sparse(box.memory)
    large = new_box(256 << 10)
    large.put_row(1)
    large.put_value(2, 12_000)
    large.put_row(3)
    yield _short(large)
    full = new_box()
    rng = random.Random(0)
    for step in range(60):
        full.put_value(step, rng.choice((40, 200, 3000)))
    yield _short(full)


def _short(box: Box) -> bytes:
    """With most of the values' noise left out: the layout is what matters."""
    data = sparse(box.memory)
    found = [data[:4]]
    at = 4
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 6], "little")
        run = data[at + 6 : at + 6 + size]
        found.append(data[at : at + 4] + min(size, 400).to_bytes(2, "little") + run[:400])
        at += 6 + size
    return b"".join(found)

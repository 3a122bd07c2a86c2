"""An outbox of a few pages, its records, and what a daemon would find in it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from sidestep.client.outbox import Outbox
from sidestep.client.segment import Large
from sidestep.client.tag_sets import TagSet
from sidestep.proto import Array, Batch, Gap, Hello, Part, RunSpec, Scalars, Value
from sidestep.proto.records import encode_scalars, encode_value, walk
from sidestep.proto.segments import Outbox as Buffer

HELLO = Hello(b"u" * 16, 1, 0, RunSpec("run", "/logs"), outbox="/o")
SMALLEST = 64 << 10  # eleven segments of a page

Held = dict[int, bytes | None]
"""Records by number: their bytes, or None for one that was dropped."""


@cache
def tags_of(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


@dataclass
class Box:
    """An outbox and the memory that it lies in."""

    memory: bytearray
    outbox: Outbox

    def tag_set(self, count: int) -> TagSet:
        """The tag set of `count` tags; the n-th that is asked for has the id n."""
        found = self.outbox.tag_sets.define(tags_of(count))
        assert found is not None
        return found

    def put_row(self, step: int, count: int = 1) -> bytes:
        """Put a row of numbers through the short way; returns the record that it makes."""
        row = tuple(float(step + i) for i in range(count))
        tag_set = self.tag_set(count)
        number = self.outbox.tag_sets.stored.index(tags_of(count))
        self.outbox.put_scalars(tag_set, step, 2 * step, row)
        return encode_scalars(Scalars(number, step, 2 * step, row))

    def fill(self, count: int) -> None:
        """Put a row whose contents nobody asks for."""
        self.outbox.put_scalars(self.tag_set(count), 1, 1, (1.0,) * count)

    def put_value(self, step: int, size: int) -> bytes:
        """Put a value with `size` bytes of data; returns the record that it makes."""
        total, pieces = value_record(step, size)
        self.outbox.put_record(total, pieces)
        return b"".join(pieces)

    def adopted(self) -> Held:
        """What a daemon would find if the process were killed now."""
        return adopted(bytes(self.memory))


def new_box(nbytes: int = SMALLEST, prefix: str = "") -> Box:
    memory = bytearray(nbytes)
    return Box(memory, Outbox(Buffer.create(memoryview(memory), HELLO), prefix))


@cache
def value_record(step: int, size: int) -> tuple[int, list[bytes | bytearray | memoryview]]:
    data = random.Random(step * 1_000_003 + size).randbytes(size)
    return encode_value(Value("blob", "v", step, 0, {}, [Array("uint8", (size,), data)]))


def adopted(memory: bytes) -> Held:
    """The records in a dead client's outbox that were not acknowledged."""
    buffer = Buffer.attach(memoryview(memory))
    acked_seq = buffer.hello().acked_seq
    found: Held = {}
    parts = b""
    for message in buffer.messages():
        match message:
            case Batch(first, last, data):
                assert not parts
                found.update(records_of(first, last, bytes(data)))
            case Part(seq, offset, total, data):
                assert offset == len(parts)
                parts += data
                if len(parts) == total:
                    found[seq], parts = parts, b""
            case Gap(first, last):
                assert not parts
                found.update(dict.fromkeys(range(first, last + 1)))
    assert not parts
    assert list(found) == sorted(found)
    return {seq: data for seq, data in found.items() if seq > acked_seq}


def records_of(first_seq: int, last_seq: int, data: bytes) -> dict[int, bytes]:
    """The records in a slice, by number."""
    spans = list(walk(data))
    assert len(spans) == last_seq - first_seq + 1
    return {seq: data[at : at + n] for seq, (at, n, _) in enumerate(spans, first_seq)}


def read(outbox: Outbox, large: Large) -> bytes:
    """A large record that was taken."""
    whole = b""
    for number in range(len(large.pieces)):
        offset, data = outbox.read_piece(large, number)
        assert offset == len(whole)
        whole += data
    assert len(whole) == large.total
    return whole


def drain(outbox: Outbox) -> Held:
    """Take all that is not acknowledged, as the sender would; nothing is acknowledged by it."""
    found: Held = {}
    seq = outbox.acked_seq + 1
    while (chunk := outbox.take(seq, lambda _: True)) is not None:
        if isinstance(chunk, Large):
            found[seq] = read(outbox, chunk)
            seq += 1
            continue
        assert chunk.first_seq <= seq <= chunk.last_seq
        if hasattr(chunk, "data"):
            records = records_of(chunk.first_seq, chunk.last_seq, chunk.data)
            found |= {number: data for number, data in records.items() if number >= seq}
        else:
            found |= dict.fromkeys(range(seq, chunk.last_seq + 1))
        seq = chunk.last_seq + 1
    assert seq == outbox.last_seq + 1
    return found

"""Records pass `check_rows` only if every reader takes them, and they mean the same to each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from struct import Struct

from sidestep.proto import RemoteProtocolError, Scalars, Value
from sidestep.proto.limits import MAX_RECORD_BYTES
from sidestep.proto.records import (
    SCALARS,
    decode_scalars,
    decode_value,
    encode_scalars,
    encode_value,
    walk,
)
from sidestep.sidecar.rows.points import ScalarBlock, check_rows, read_points
from tests.unit.proto.strategies import scalars, values

from ..mutator import mutate_bytes, mutate_packed
from ..seeds import drawn

TAG_SETS = {0: ("loss",), 1: ("a", "b", "c"), 2: tuple(f"t{i}" for i in range(20))}
_COUNTS = {tag_set: len(tags) for tag_set, tags in TAG_SETS.items()}
_HEAD = Struct("<HH")  # skip, records
_META_AT, _META_SIZE_AT = 32, 24


def check(data: bytes) -> None:
    """A batch: how many of its records are skipped, how many follow, and its bytes."""
    if len(data) < _HEAD.size:
        return
    (skip, count), rows = _HEAD.unpack_from(data), data[_HEAD.size :]
    for counted in (count, _count(rows) - skip):
        if counted < 1:
            continue  # no message says so
        try:
            kept, step, kinds = check_rows(rows, _COUNTS, skip, counted)
        except RemoteProtocolError as error:
            if error.code not in {"malformed", "too_large", "undefined"}:
                raise
            continue
        _taken(bytes(kept), counted, step, kinds)


def _count(rows: bytes) -> int:
    """How many records there are, as far as they can be walked."""
    found = 0
    try:
        for _ in walk(rows):
            found += 1
    except RemoteProtocolError:
        pass
    return found


def _taken(rows: bytes, count: int, step: int, kinds: frozenset[str]) -> None:
    """What may be journalled is read the same way record by record and in blocks."""
    steps: list[int] = []
    found: set[str] = set()
    for at, length, kind in walk(rows):
        if kind == SCALARS:
            row = decode_scalars(rows, at)
            assert encode_scalars(row) == rows[at : at + 6] + b"\0\0" + rows[
                at + 8 : at + length
            ] or (rows[at + 5 : at + 8] != b"\0\0\0")
            steps.append(row.step)
        else:
            value = decode_value(rows[at : at + length])
            again = decode_value(b"".join(encode_value(value)[1]))
            assert (again.kind, again.tag, again.step) == (value.kind, value.tag, value.step)
            assert [a.shape for a in again.arrays] == [a.shape for a in value.arrays]
            steps.append(value.step)
            found.add(value.kind)
    assert len(steps) == count
    assert steps[-1] == step
    assert found == kinds
    read: list[int] = []
    for points in read_points(rows, TAG_SETS):
        if isinstance(points, ScalarBlock):
            assert points.values.shape == (len(points.steps), len(points.tags))
            read += points.steps.tolist()
        else:
            assert sum(array.nbytes for array in points.arrays) <= MAX_RECORD_BYTES
            read.append(points.step)
    assert read == steps


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another batch: mostly the description of a value is changed, its lengths put right."""
    found = _values_at(data)
    if not found or rng.random() < 0.4:
        return mutate_bytes(data, rng)
    at, length = rng.choice(found)
    record = data[at : at + length]
    size = int.from_bytes(record[_META_SIZE_AT : _META_SIZE_AT + 4], "little")
    meta = mutate_packed(record[_META_AT : _META_AT + size], rng)
    arrays = record[_META_AT + (size + 7 & ~7) :]
    body = meta + bytes(-len(meta) % 8) + arrays
    head = (_META_AT + len(body)).to_bytes(4, "little") + record[4:_META_SIZE_AT]
    made = head + len(meta).to_bytes(4, "little") + bytes(4) + body
    return data[:at] + made + data[at + length :]


def _values_at(data: bytes) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    try:
        for at, length, kind in walk(data[_HEAD.size :]):
            if kind != SCALARS:
                found.append((at + _HEAD.size, length))
    except RemoteProtocolError:
        pass
    return found


def encoded(records: list[Scalars | Value]) -> bytes:
    """The bytes of these records, one after the other."""
    return b"".join(
        encode_scalars(r) if isinstance(r, Scalars) else b"".join(encode_value(r)[1])
        for r in records
    )


def some_records() -> Iterator[list[Scalars | Value]]:
    """Batches of what the strategies draw, under the tag sets from above."""
    rows: list[Scalars | Value] = []
    for number, row in enumerate(drawn(scalars, 12)):
        tag_set = number % 3
        numbers = (row.values * 20)[: _COUNTS[tag_set]]
        rows.append(Scalars(tag_set, row.step, row.time_ns, numbers))
    yield rows
    yield [rows[0]] * 12
    singles = drawn(values, 16)
    yield from ([value] for value in singles)
    yield [rows[0], singles[0], rows[1], rows[1], singles[1]]


def seeds() -> Iterator[bytes]:
    """Batches that are taken whole, and one of which the first record is known."""
    for records in some_records():
        yield _HEAD.pack(0, len(records)) + encoded(records)
        if len(records) > 1:
            yield _HEAD.pack(1, len(records) - 1) + encoded(records)

"""Journal rows to points: what the slow walk finds, faster, and one error for anything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sidestep.proto import Array, RemoteProtocolError, Scalars, Value
from sidestep.proto.records import (
    HEADER,
    SCALARS,
    decode_scalars,
    decode_value,
    encode_scalars,
    encode_value,
    walk,
)
from sidestep.sidecar.rows.points import (
    MIXED,
    MixedBlock,
    Points,
    ScalarBlock,
    check_rows,
    read_points,
    split,
    wall_times_s,
)

# Shared cores are slow at times, and a clock is no part of what is tested here.
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

INT64 = st.integers(-(2**63), 2**63 - 1)
TAG_SETS = {number: tuple(f"{number}/{i}" for i in range(number)) for number in range(1, 6)}


@st.composite
def scalar_records(draw: st.DrawFn) -> Scalars:
    tag_set = draw(st.integers(1, 5))
    values = st.lists(st.floats(), min_size=tag_set, max_size=tag_set)
    return Scalars(tag_set, draw(INT64), draw(INT64), tuple(draw(values)))


@st.composite
def values(draw: st.DrawFn) -> Value:
    data = draw(st.binary(max_size=20))
    arrays = draw(st.sampled_from([(), (Array("uint8", (len(data),), data),) * 2]))
    kind = draw(st.sampled_from(["histogram", "text"]))
    return Value(kind, "tag", draw(INT64), draw(INT64), {"text": draw(st.text())}, arrays)


def repeated(record: Scalars, times: int) -> list[Scalars]:
    """Records alike in all but their steps and times."""
    back = 1 if record.step > 0 else -1
    return [
        Scalars(record.tag_set, record.step - i * back, record.time_ns // (i + 1), record.values)
        for i in range(times)
    ]


STRETCH = st.builds(repeated, scalar_records(), st.integers(1, 30))


def in_turn(some: list[Scalars], times: int) -> list[Scalars]:
    """Records of several tag sets, one after the other, again and again."""
    return [
        replace(record, step=(record.step + i) % 2**62) for i in range(times) for record in some
    ]


IN_TURN = st.builds(in_turn, st.lists(scalar_records(), min_size=2, max_size=6), st.integers(1, 12))
ROWS = st.lists(STRETCH | IN_TURN | values().map(lambda value: [value]), max_size=6).map(
    lambda parts: [record for part in parts for record in part]
)


def encode(records: Sequence[Scalars | Value]) -> bytes:
    return b"".join(
        encode_scalars(record) if isinstance(record, Scalars) else b"".join(encode_value(record)[1])
        for record in records
    )


def slow(data: bytes) -> list[Scalars | Value]:
    return [
        decode_scalars(data, at) if kind == SCALARS else decode_value(data[at : at + length])
        for at, length, kind in walk(data)
    ]


def rows_of(points: Points) -> list[Scalars | Value]:
    """The records that a point was made of."""
    if isinstance(points, Value):
        return [points]
    if isinstance(points, MixedBlock):
        return [row for one in points.alone() for row in rows_of(one)]
    tag_set = len(points.tags)
    assert points.tags == TAG_SETS[tag_set]
    assert (points.steps.dtype.str, points.values.dtype.str) == ("<i8", "<f8")
    columns = zip(points.steps, points.times_ns, points.values, strict=True)
    return [
        Scalars(tag_set, int(step), int(time_ns), tuple(row.tolist()))
        for step, time_ns, row in columns
    ]


def bits(records: list[Scalars | Value]) -> bytes:
    """The records as bytes: NaN is like no number, but its bytes are like themselves."""
    return encode(records)


@calm
@given(ROWS, st.sampled_from([bytes, bytearray, memoryview]))
def test_the_points_are_what_the_slow_walk_finds(
    records: list[Scalars | Value], holder: type[bytes]
) -> None:
    data = encode(records)
    found = [row for points in read_points(holder(data), TAG_SETS) for row in rows_of(points)]
    assert bits(found) == bits(slow(data)) == data


def curves(records: Sequence[Scalars | Value]) -> dict[str, list[object]]:
    """What each tag's curve consists of, in its order; the values, with how many came before."""
    found: dict[str, list[object]] = {"values": []}
    for number, record in enumerate(records):
        if isinstance(record, Value):
            found["values"].append((number, bits([record])))
            continue
        for tag, value in zip(TAG_SETS[record.tag_set], record.values, strict=True):
            one = Scalars(1, record.step, record.time_ns, (value,))
            found.setdefault(tag, []).append(bits([one]))
    return found


@calm
@given(ROWS, st.sampled_from([bytes, bytearray, memoryview]))
def test_in_any_order_each_curve_keeps_its_own(
    records: list[Scalars | Value], holder: type[bytes]
) -> None:
    data = encode(records)
    points = list(read_points(holder(data), TAG_SETS, any_order=True))
    assert curves([row for point in points for row in rows_of(point)]) == curves(records)


def test_dicts_in_turn_are_a_block_each() -> None:
    row = [Scalars(1 + i % 3, i, i, (1.0,) * (1 + i % 3)) for i in range(300)]
    value = Value("text", "t", 1, 1, {"text": "x"})
    data = encode([*row, value, *row[1:]])
    shapes = [
        (point.tags[0], len(point.steps)) if isinstance(point, ScalarBlock) else None
        for point in read_points(data, TAG_SETS, any_order=True)
    ]
    before = [(f"{number}/0", 100) for number in (1, 2, 3)]
    assert shapes == [*before, None, ("2/0", 100), ("3/0", 100), ("1/0", 99)]


def test_a_tag_in_two_tag_sets_keeps_its_order() -> None:
    shared = {1: ("loss",), 2: ("loss", "lr")}
    data = encode([Scalars(1 + i % 2, i, i, (1.0,) * (1 + i % 2)) for i in range(100)])
    points = list(read_points(data, shared, any_order=True))
    (mixed,) = points
    assert isinstance(mixed, MixedBlock)
    assert mixed.steps.tolist() == [*range(100)]
    assert [(row.tags, row.steps.tolist()) for row in mixed.alone()] == [
        (shared[1 + i % 2], [i]) for i in range(100)
    ]


def test_thousands_of_dicts_in_turn_are_one_block_of_many_tag_sets() -> None:
    tag_sets = {n: tuple(f"{n}/{k}" for k in range(1 + n % 3)) for n in range(40)}
    row = [Scalars(i % 40, i, 7 * i, (i / 3,) * (1 + i % 40 % 3)) for i in range(100)]
    (mixed,) = read_points(encode(row), tag_sets, any_order=True)
    assert isinstance(mixed, MixedBlock)
    assert mixed.counts.tolist() == [len(one.values) for one in row]
    assert [mixed.tag_sets[n] for n in mixed.which.tolist()] == [
        tag_sets[one.tag_set] for one in row
    ]
    alone = list(mixed.alone())
    assert [(one.steps[0], one.times_ns[0], tuple(one.values[0])) for one in alone] == [
        (one.step, one.time_ns, one.values) for one in row
    ]
    with pytest.raises(RemoteProtocolError, match="scalars of tag set 39"):
        list(read_points(encode(row), {**tag_sets, 39: ("x",) * 9}, any_order=True))
    del tag_sets[39]
    with pytest.raises(RemoteProtocolError, match="scalars of tag set 39"):
        list(read_points(encode(row), tag_sets, any_order=True))


@calm
@given(ROWS.filter(bool), st.data())
def test_what_may_be_journalled_is_what_the_slow_walk_says(
    records: list[Scalars | Value], data: st.DataObject
) -> None:
    skip = data.draw(st.integers(0, len(records) - 1))
    rest = records[skip:]
    reached: list[tuple[int, int, int, int]] = []
    counts = {number: len(tags) for number, tags in TAG_SETS.items()}
    kept, step, kinds = check_rows(encode(records), counts, skip, len(rest), reached)
    assert bytes(kept) == encode(rest)
    assert step == rest[-1].step
    assert kinds == {record.kind for record in rest if isinstance(record, Value)}
    assert sum((Counter({s: n}) for s, n, _, _ in reached), Counter[int]()) == Counter(
        record.tag_set if isinstance(record, Scalars) else -1 for record in rest
    )
    for tag_set in {record.tag_set for record in rest if isinstance(record, Scalars)}:
        steps = [r.step for r in rest if isinstance(r, Scalars) and r.tag_set == tag_set]
        found = [r for r in reached if r[0] == tag_set]
        assert found[0][2] == steps[0]
        assert max(furthest for *_, furthest in found) == max(steps)
    missing = data.draw(st.sampled_from(sorted(TAG_SETS)))
    if any(isinstance(r, Scalars) and r.tag_set == missing for r in records):
        with pytest.raises(RemoteProtocolError, match="undefined tag set"):
            check_rows(
                encode(records), {k: v for k, v in counts.items() if k != missing}, skip, len(rest)
            )


def test_like_records_are_one_block_and_others_are_not() -> None:
    long = [Scalars(2, i, i, (1.0, 2.0)) for i in range(100)]
    mixed = [Scalars(1 + i % 2, i, i, (1.0,) * (1 + i % 2)) for i in range(10)]
    data = encode([*long, Value("text", "t", 1, 1, {"text": "x"}), *long[:7], *mixed, *long])
    sizes = [
        len(points.steps) if isinstance(points, ScalarBlock) else 0
        for points in read_points(data, TAG_SETS)
    ]
    assert sizes == [100, 0, 7, *[1] * 9, 101]


def test_a_stretch_that_ends_after_the_look_ahead() -> None:
    for length in range(1, 20):
        data = encode([Scalars(1, 0, 0, (0.0,))] * length + [Scalars(2, 0, 0, (0.0, 0.0))])
        assert [stretch[2] for stretch in split(data)] == [length, 1]


@settings(calm, max_examples=300)
@given(ROWS.filter(bool), st.data())
def test_changed_bytes_are_points_or_a_protocol_error(
    records: list[Scalars | Value], data: st.DataObject
) -> None:
    row = bytearray(encode(records))
    for _ in range(data.draw(st.integers(1, 4))):
        row[data.draw(st.integers(0, len(row) - 1))] = data.draw(st.integers(0, 255))
    row = row[: data.draw(st.integers(len(row) - 16, len(row)))]
    try:
        stretches = list(split(bytes(row)))
    except RemoteProtocolError:
        return
    sizes = [nbytes * (1 if tag_set == MIXED else n) for _, nbytes, n, tag_set, _ in stretches]
    assert sum(sizes) == len(row)
    try:
        found = list(read_points(bytes(row), TAG_SETS))
    except RemoteProtocolError:
        return
    assert len([r for points in found for r in rows_of(points)]) == sum(s[2] for s in stretches)


@calm
@given(st.binary(max_size=200))
def test_any_bytes_are_points_or_a_protocol_error(data: bytes) -> None:
    try:
        list(read_points(data, TAG_SETS))
    except RemoteProtocolError:
        pass


@calm
@given(ROWS, st.data())
def test_it_splits_what_the_slow_walk_accepts_and_nothing_more(
    records: list[Scalars | Value], data: st.DataObject
) -> None:
    row = bytearray(encode(records))
    if row:
        row[data.draw(st.integers(0, len(row) - 1))] ^= data.draw(st.integers(1, 255))
    assert _accepts(bytes(row)) == _splits(bytes(row))


def _accepts(data: bytes) -> bool:
    try:
        for at, _length, kind in walk(data):
            if kind == SCALARS:
                decode_scalars(data, at)
    except RemoteProtocolError:
        return False
    return True


def _splits(data: bytes) -> bool:
    try:
        list(split(data))
    except RemoteProtocolError:
        return False
    return True


def test_records_begin_at_multiples_of_eight() -> None:
    odd = bytearray(encode([Value("text", "t", 1, 1, {"text": "x" * 40})])[:36])
    odd[:4] = (36).to_bytes(4, "little")
    with pytest.raises(RemoteProtocolError, match="at byte 0"):
        list(split(bytes(odd * 2)))


def test_a_length_that_ends_within_the_last_word_is_malformed() -> None:
    torn = HEADER.pack(44, SCALARS, 0, 0) + bytes(40)
    with pytest.raises(RemoteProtocolError, match="in 44 bytes"):
        list(split(encode([Scalars(1, 0, 0, (1.0,))]) + torn))


def test_records_of_one_tag_set_in_two_lengths_are_left_behind_once() -> None:
    """Going back by the last one's length would lead to where the walk began, for ever."""
    mixed = [Scalars(i % 2, i, 0, (1.0,)) for i in range(30)]
    few = [Scalars(7, i, 0, (1.0,)) for i in range(15)]
    many = Scalars(7, 15, 0, (1.0,) * 11)  # longer than one of `few` by a fifteenth of `mixed`
    data = encode([*mixed, *few, many])
    assert 15 * (_nbytes(many) - _nbytes(few[0])) == 30 * _nbytes(mixed[0])
    at = 0
    for start, length, n, tag_set, _ in split(data):
        assert start == at
        at += length if tag_set == MIXED else n * length
        assert at > start
    assert at == len(data)


def _nbytes(record: Scalars) -> int:
    return len(encode([record]))


@pytest.mark.parametrize("tag_sets", [{}, {2: ("only one",)}, {2: ("a", "b", "c")}])
def test_a_tag_set_must_be_defined_and_as_wide(tag_sets: dict[int, tuple[str, ...]]) -> None:
    data = encode([Scalars(2, 0, 0, (1.0, 2.0))])
    with pytest.raises(RemoteProtocolError, match="tag set 2"):
        list(read_points(data, tag_sets))


@calm
@given(st.integers(10**18, 2 * 10**18))  # the years 2001 to 2033
def test_seconds_are_the_nearest_there_are(time_ns: int) -> None:
    assert wall_times_s(time_ns) == time_ns / 10**9  # of integers, which Python rounds but once
    assert wall_times_s(np.array([time_ns]))[0] == time_ns / 10**9


@calm
@given(INT64)
def test_seconds_of_one_time_are_those_of_an_array(time_ns: int) -> None:
    assert wall_times_s(time_ns) == wall_times_s(np.array([time_ns]))[0]


def test_the_kinds_are_those_of_what_is_new() -> None:
    first, second = (b"".join(encode_value(Value(k, "t", 1, 1))[1]) for k in ("moments", "text"))
    assert check_rows(first + second, {}, 1, 1)[2] == {"text"}
    assert check_rows(first + second, {}, 0, 2)[2] == {"moments", "text"}

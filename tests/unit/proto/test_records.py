"""A record is read as it was written, bit for bit; a damaged one is a RemoteProtocolError."""

from __future__ import annotations

import ctypes
import math
import struct
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given, settings, strategies as st

from sidestep.proto import Array, LocalProtocolError, RemoteProtocolError, Scalars, Value
from sidestep.proto.limits import (
    MAX_FRAME_BYTES,
    MAX_RECORD_BYTES,
    MAX_SEQ,
    MAX_TAG_BYTES,
    MAX_TAGS_PER_RECORD,
)
from sidestep.proto.records import (
    DTYPE_SIZES,
    MAX_ARRAYS,
    MAX_NDIM,
    SCALARS,
    VALUE,
    VALUE_HEAD,
    check_tag,
    decode_scalars,
    decode_value,
    encode_scalars,
    encode_value,
    walk,
)

from .strategies import arrays, float64s, mutants, scalars, steps, values

VALUE_OF_TWO = Value(
    "blob",
    "train/x",
    -5,
    10**18,
    {"caption": "two"},
    (Array("uint8", (3,), b"abc"), Array("float32", (2, 1), struct.pack("<2f", 1.5, -0.0))),
)


def join(value: Value) -> bytes:
    length, pieces = encode_value(value)
    data = b"".join(pieces)
    assert len(data) == length
    return data


def bits(record: Scalars) -> bytes:
    return struct.pack(f"<{len(record.values)}d", *record.values)


def with_meta(*meta: object, arrays_bytes: int = 0) -> bytes:
    """A VALUE record whose meta says what `encode_value` would not."""
    packed = msgpack.packb(list(meta))
    body = packed + bytes(-len(packed) % 8 + arrays_bytes)
    head = VALUE_HEAD.pack(VALUE_HEAD.size + len(body), VALUE, 0, 0, 0, 0, len(packed), 0)
    return head + body


# --- scalars -----------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(scalars)
def test_scalars_round_trip(record: Scalars) -> None:
    data = encode_scalars(record)
    assert len(data) == 32 + 8 * len(record.values)
    assert list(walk(data)) == [(0, len(data), SCALARS)]
    read = decode_scalars(data)
    # By their bits: NaN is not equal to itself, and 0.0 is equal to -0.0.
    assert bits(read) == bits(record)
    assert replace(read, values=()) == replace(record, values=())


@settings(max_examples=200, deadline=None)
@given(st.lists(float64s, min_size=1, max_size=8), steps, steps)
def test_every_float64_keeps_its_bits(patterns: list[bytes], step: int, time_ns: int) -> None:
    numbers = struct.unpack(f"<{len(patterns)}d", b"".join(patterns))
    data = encode_scalars(Scalars(7, step, time_ns, numbers))
    assert data[32:] == b"".join(patterns)
    assert bits(decode_scalars(data)) == b"".join(patterns)


@pytest.mark.parametrize(
    "number", [math.nan, math.inf, -math.inf, 5e-324, -5e-324, 2.0**-1022, 1.8e308, -0.0, 1e-8]
)
@pytest.mark.parametrize("step", [0, -1, MAX_SEQ, -MAX_SEQ - 1])
def test_extremes_are_kept(number: float, step: int) -> None:
    read = decode_scalars(encode_scalars(Scalars(2**32 - 1, step, step, (number,))))
    assert struct.pack("<d", read.values[0]) == struct.pack("<d", number)
    assert (read.step, read.time_ns, read.tag_set) == (step, step, 2**32 - 1)


def test_the_largest_record_of_scalars() -> None:
    record = Scalars(0, 0, 0, (1.5,) * MAX_TAGS_PER_RECORD)
    assert decode_scalars(encode_scalars(record)) == record


def test_a_nan_keeps_its_payload() -> None:
    payload = bytes.fromhex("efbeadde0000f07f")  # a signalling one
    numbers = struct.unpack("<d", payload)
    assert encode_scalars(Scalars(0, 0, 0, numbers))[32:] == payload


def test_the_layout_is_the_documented_one() -> None:
    data = encode_scalars(Scalars(3, -4, 5, (1.0, 2.0)))
    assert data == struct.pack("<IBBHIIqqdd", 48, 1, 0, 0, 3, 2, -4, 5, 1.0, 2.0)
    specs = [["uint8", [3]], ["float32", [2, 1]]]
    meta = msgpack.packb(["blob", "train/x", {"caption": "two"}, specs])
    length = 32 + -(-len(meta) // 8) * 8 + 8 + 8
    head = struct.pack("<IBBHqqII", length, 2, 0, 0, -5, 10**18, len(meta), 0)
    body = meta + bytes(-len(meta) % 8) + b"abc" + bytes(5) + struct.pack("<2f", 1.5, -0.0)
    assert join(VALUE_OF_TWO) == head + body


@pytest.mark.parametrize(
    "record",
    [
        Scalars(0, 0, 0, ()),
        Scalars(0, 0, 0, (0.0,) * (MAX_TAGS_PER_RECORD + 1)),
        Scalars(-1, 0, 0, (0.0,)),
        Scalars(2**32, 0, 0, (0.0,)),
        Scalars(0, MAX_SEQ + 1, 0, (0.0,)),
        Scalars(0, 0, -MAX_SEQ - 2, (0.0,)),
    ],
    ids=lambda record: repr(record)[:60],
)
def test_scalars_that_no_reader_takes_are_a_local_error(record: Scalars) -> None:
    with pytest.raises(LocalProtocolError):
        encode_scalars(record)


# --- values ------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(values)
def test_values_round_trip(value: Value) -> None:
    data = join(value)
    assert len(data) % 8 == 0
    assert list(walk(data)) == [(0, len(data), VALUE)]
    read = decode_value(data)
    expected = [(a.dtype, a.shape, bytes(a.data)) for a in value.arrays]
    assert [(a.dtype, a.shape, bytes(a.data)) for a in read.arrays] == expected
    assert replace(read, arrays=()) == replace(value, arrays=())


@settings(max_examples=50, deadline=None)
@given(st.lists(arrays(), min_size=1, max_size=4), st.text("ab", max_size=9))
def test_each_array_begins_at_a_multiple_of_eight(items: list[Array], kind: str) -> None:
    """So that a reader may look at float64s where they lie."""
    data = bytearray(join(Value(kind or "k", "tag", 0, 0, {}, items)))
    for array in decode_value(data).arrays:
        assert isinstance(array.data, memoryview)
        assert array.data.obj is data  # a view: nothing was copied
        if array.data:
            assert (address(array.data) - address(data)) % 8 == 0


def address(buffer: bytearray | memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def test_bulk_is_not_copied_on_the_way_in() -> None:
    data = bytearray(b"12345678")
    _, pieces = encode_value(Value("k", "t", 0, 0, {}, [Array("uint8", (8,), data)]))
    assert any(piece is data for piece in pieces)


def test_a_typed_view_counts_by_its_bytes() -> None:
    view = memoryview(struct.pack("<2d", 1.0, 2.0)).cast("d")
    data = join(Value("k", "t", 0, 0, {}, [Array("float64", (2,), view)]))
    assert decode_value(data).arrays[0].data == view.cast("B")


@pytest.mark.parametrize(
    "value",
    [
        replace(VALUE_OF_TWO, kind=""),
        replace(VALUE_OF_TWO, kind="x" * 65),
        replace(VALUE_OF_TWO, tag=""),
        replace(VALUE_OF_TWO, tag="x" * (MAX_TAG_BYTES + 1)),
        replace(VALUE_OF_TWO, tag="\ud800"),
        replace(VALUE_OF_TWO, step=MAX_SEQ + 1),
        replace(VALUE_OF_TWO, time_ns=2**70),
        replace(VALUE_OF_TWO, info={"text": "x" * (MAX_FRAME_BYTES + 1)}),
        replace(VALUE_OF_TWO, info={"x": object()}),
        replace(VALUE_OF_TWO, info={1: "key is no text"}),
        replace(VALUE_OF_TWO, info={"x": 2**64}),
        replace(VALUE_OF_TWO, arrays=[Array("uint8", (1,), b"x")] * (MAX_ARRAYS + 1)),
        replace(VALUE_OF_TWO, arrays=[Array("uint8", (2,), b"x")]),
        replace(VALUE_OF_TWO, arrays=[Array("float64", (1,), b"1234567")]),
        replace(VALUE_OF_TWO, arrays=[Array("complex64", (1,), b"12345678")]),
        replace(VALUE_OF_TWO, arrays=[Array("uint8", (-1,), b"")]),
        replace(VALUE_OF_TWO, arrays=[Array("uint8", (1,) * (MAX_NDIM + 1), b"x")]),
        replace(VALUE_OF_TWO, arrays=[Array("uint8", (0, 2**40), b"")]),
    ],
    ids=lambda value: repr(value)[:80],
)
def test_values_that_no_reader_takes_are_a_local_error(value: Value) -> None:
    with pytest.raises(LocalProtocolError):
        encode_value(value)


EIGHT = [["uint8", [8]]]


@pytest.mark.parametrize(
    "meta",
    [
        ["k", "t", {}],
        ["k", "", {}, EIGHT],
        ["k", 1, {}, EIGHT],
        ["", "t", {}, EIGHT],
        ["k" * 65, "t", {}, EIGHT],
        [1, "t", {}, EIGHT],
        ["k", "t", [], EIGHT],
        ["k", "t", None, EIGHT],
        ["k", "t", {}, {}],
        ["k", "t", {}, [["uint8"]]],
        ["k", "t", {}, [["uint8", 8]]],
        ["k", "t", {}, [["uint8", [8], 1]]],
        ["k", "t", {}, [["uint8", [-8]]]],
        ["k", "t", {}, [["uint8", [8, True]]]],
        ["k", "t", {}, [["uint8", [8.0]]]],
        ["k", "t", {}, [["object", [1]]]],
        ["k", "t", {}, [["uint8", [2**63, 2**63]]]],
        ["k", "t", {}, [["uint8", [8]], ["uint8", [0, 2**63]]]],
        ["k", "t", {}, [["uint8", [8] + [1] * MAX_NDIM]]],
        ["k", "t", {}, [["uint8", [8]]] + [["uint8", [0]]] * MAX_ARRAYS],
        ["k", "t", {}, [["uint8", [9]]]],
        ["k", "t", {}, [["uint64", [2]]]],
        ["k", "t", {}, [["uint8", [MAX_RECORD_BYTES]]]],
        ["k", "t", {}, []],
    ],
    ids=lambda meta: repr(meta)[:60],
)
def test_meta_that_lies_is_refused(meta: list[object]) -> None:
    assert decode_value(with_meta("k", "t", {}, EIGHT, arrays_bytes=8)).arrays[0].shape == (8,)
    with pytest.raises(RemoteProtocolError):
        decode_value(with_meta(*meta, arrays_bytes=8))


def test_a_value_of_another_length_than_it_says_is_refused() -> None:
    data = join(VALUE_OF_TWO)
    scalars_in_its_place = encode_scalars(Scalars(0, 0, 0, (0.0,) * (len(data) // 8 - 4)))
    endless_meta = data[:24] + b"\xff\xff\xff\xff" + data[28:]
    head = VALUE_HEAD.pack(MAX_RECORD_BYTES + 8, VALUE, 0, 0, 0, 0, 3, 0)
    too_large = head + b"\x94\xa1k" + bytes(MAX_RECORD_BYTES + 8 - 35)
    for damaged in (data[:-8], data + bytes(8), scalars_in_its_place, endless_meta, too_large):
        with pytest.raises(RemoteProtocolError):
            decode_value(damaged)


def test_meta_may_grow_at_its_end() -> None:
    assert decode_value(with_meta("k", "t", {}, [], "of the future")).tag == "t"


# --- walking -----------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(scalars | values, max_size=8))
def test_walk_finds_each_record_where_it_lies(records: list[Scalars | Value]) -> None:
    pieces = [encode_scalars(r) if isinstance(r, Scalars) else join(r) for r in records]
    found = list(walk(memoryview(b"".join(pieces))))
    assert [kind for _, _, kind in found] == [
        SCALARS if isinstance(r, Scalars) else VALUE for r in records
    ]
    at = 0
    for piece, (offset, length, _) in zip(pieces, found, strict=True):
        assert (offset, length) == (at, len(piece))
        assert offset % 8 == 0
        at += length


@settings(max_examples=50, deadline=None)
@given(scalars, st.data())
def test_a_stretch_of_records_cut_anywhere_is_refused(record: Scalars, data: st.DataObject) -> None:
    whole = encode_scalars(record) * 2
    cut = data.draw(st.integers(1, len(whole) - 1).filter(lambda at: at != len(whole) // 2))
    with pytest.raises(RemoteProtocolError):
        list(walk(whole[:cut]))


@pytest.mark.parametrize("kind", [SCALARS, VALUE])
@pytest.mark.parametrize("length", [0, 8, 24, 33, 36, 48, 2**32 - 8])
def test_a_record_of_impossible_length_is_refused(kind: int, length: int) -> None:
    data = struct.pack("<IBBH", length, kind, 0, 0) + bytes(32)
    with pytest.raises(RemoteProtocolError, match="bytes at byte 0"):
        list(walk(data))


@pytest.mark.parametrize("kind", [0, 3, 4, 255])
def test_kinds_that_never_travel_are_refused(kind: int) -> None:
    """LARGE and DROPPED stand in an outbox alone."""
    with pytest.raises(RemoteProtocolError, match="unknown record kind"):
        list(walk(struct.pack("<IBBHQ", 16, kind, 0, 0, 8)))


def read_all(data: bytes) -> int:
    """What a daemon does with records: to walk, then to read each. Returns how many were read."""
    read = 0
    try:
        for offset, length, kind in walk(data):
            if kind == SCALARS:
                decode_scalars(data, offset)
            else:
                decode_value(memoryview(data)[offset : offset + length])
            read += 1
    except RemoteProtocolError:
        pass
    return read


def test_damaged_records_are_read_or_refused_and_nothing_else() -> None:
    samples = [
        encode_scalars(Scalars(1, 2, 3, (1.0, math.nan))) * 3,
        join(VALUE_OF_TWO) + encode_scalars(Scalars(1, 2, 3, (1.0,))),
        join(Value("text", "t", 0, 0, {"text": "hello"})),
    ]
    read = sum(read_all(mutant) for mutant in mutants(3, samples, 20_000))
    assert 5_000 < read < 55_000  # else the mutants are too wild, or too tame, to say much


def test_damaged_records_are_refused_by_each_reader_alone() -> None:
    samples = [encode_scalars(Scalars(1, 2, 3, (1.0, 2.0))), join(VALUE_OF_TWO)]
    for mutant in mutants(4, samples, 10_000):
        for reader in (decode_scalars, decode_value):
            try:
                reader(mutant)
            except RemoteProtocolError:
                pass


# --- tags and dtypes ---------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["a", "é" * (MAX_TAG_BYTES // 2), "x" * MAX_TAG_BYTES, "\0", "../"])
def test_any_text_may_be_a_tag(tag: str) -> None:
    assert check_tag(tag) == tag


@pytest.mark.parametrize(
    "tag",
    ["", None, b"a", 1, "x" * (MAX_TAG_BYTES + 1), "🙂" * (MAX_TAG_BYTES // 4 + 1), "\udc80"],
    ids=lambda tag: repr(tag)[:20],
)
def test_what_is_no_tag_is_refused(tag: object) -> None:
    with pytest.raises(RemoteProtocolError):
        check_tag(tag)


def test_dtypes_have_numpys_names_and_sizes() -> None:
    numpy = pytest.importorskip("numpy")
    assert {name: numpy.dtype(name).itemsize for name in DTYPE_SIZES} == DTYPE_SIZES


@settings(max_examples=50, deadline=None)
@given(arrays())
def test_numpy_takes_every_array_as_it_is(array: Array) -> None:
    numpy = pytest.importorskip("numpy")
    data = join(Value("k", "t", 0, 0, {}, [array]))
    (read,) = decode_value(data).arrays
    seen = numpy.frombuffer(read.data, read.dtype).reshape(read.shape)
    assert seen.nbytes == array.nbytes
    assert seen.flags.aligned

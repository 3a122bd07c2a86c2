"""A frame yields the message that it was made of, or a RemoteProtocolError: never anything else."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from dataclasses import fields, replace

import msgpack
import pytest
from hypothesis import given, settings, strategies as st

from sidestep.proto import (
    Ack,
    Batch,
    Books,
    Gap,
    Hello,
    LocalProtocolError,
    Message,
    Nack,
    Part,
    Ping,
    Pong,
    Reject,
    RemoteProtocolError,
    RunSpec,
    Tags,
    decode,
    encode,
)
from sidestep.proto.codec import MAGIC
from sidestep.proto.limits import (
    MAX_CONFIG_BYTES,
    MAX_CONTAINER,
    MAX_DATA_BYTES,
    MAX_DEPTH,
    MAX_FRAME_BYTES,
    MAX_NAME_BYTES,
    MAX_RECORD_BYTES,
    MAX_SEQ,
    MAX_TAG_BYTES,
    MAX_TAGS_PER_RECORD,
    PROTOCOL_VERSION,
)
from sidestep.proto.tag_sets import ReducedTags, reduction_of

from .strategies import MESSAGES, messages, mutants

HELLO = Hello(b"0123456789abcdef", 1, 2, RunSpec("run", "/logs", wandb={"mode": "offline"}))
VERSIONED = MAGIC + bytes([PROTOCOL_VERSION])


def frame_of(*envelope: object) -> bytes:
    return VERSIONED + msgpack.packb(list(envelope))


def refusal(frame: bytes) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(frame)
    return caught.value


def parse(frame: bytes) -> Message | RemoteProtocolError:
    """The invariant: a message, or a RemoteProtocolError; all else fails the test."""
    try:
        return decode(frame)
    except RemoteProtocolError as error:
        return error


# --- what is well said -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_round_trip(kind: type[Message]) -> None:
    @settings(max_examples=40, deadline=None)
    @given(MESSAGES[kind])
    def round_trip(message: Message) -> None:
        frame = encode(message)
        assert frame.startswith(VERSIONED)
        assert decode(frame) == message
        assert decode(memoryview(frame)) == message

    round_trip()


@pytest.mark.parametrize("nbytes", [1, 255, 256, 65_535, 65_536, MAX_DATA_BYTES])
def test_bulk_is_the_same_messagepack_as_anything_else(nbytes: int) -> None:
    data = random.Random(nbytes).randbytes(nbytes)
    batch = msgpack.packb(["batch", {"first_seq": 3, "last_seq": 7, "data": data}])
    assert encode(Batch(3, 7, data)) == MAGIC + b"\x01" + batch
    part = {"seq": 3, "offset": 0, "total": MAX_FRAME_BYTES, "data": data}
    assert encode(Part(3, 0, MAX_FRAME_BYTES, data)) == MAGIC + b"\x01" + msgpack.packb(
        ["part", part]
    )


def test_bulk_travels_from_a_view_without_being_copied_into_bytes_first() -> None:
    data = memoryview(bytearray(range(256)))[8:]
    assert decode(encode(Batch(1, 2, data))) == Batch(1, 2, bytes(data))
    assert decode(encode(Part(1, 0, 256, data))) == Part(1, 0, 256, bytes(data))


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_fields_of_the_future_are_ignored(kind: type[Message]) -> None:
    @settings(max_examples=10, deadline=None)
    @given(MESSAGES[kind], st.sampled_from([None, 1, "text", [1, {}], {"deep": [1]}]))
    def ignored(message: Message, extra: object) -> None:
        name, body = msgpack.unpackb(encode(message)[4:])
        assert decode(frame_of(name, {"a field of the future": extra, **body})) == message

    ignored()


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_fields_without_a_default_are_required_and_the_others_have_it(kind: type[Message]) -> None:
    @settings(max_examples=3, deadline=None)
    @given(MESSAGES[kind])
    def required(message: Message) -> None:
        name, body = msgpack.unpackb(encode(message)[4:])
        for field in fields(kind):
            less = {key: value for key, value in body.items() if key != field.name}
            try:
                given_fields = {f.name: getattr(message, f.name) for f in fields(kind)}
                del given_fields[field.name]
                default = kind(**given_fields)
            except TypeError:
                assert field.name in str(refusal(frame_of(name, less)))
            else:
                assert decode(frame_of(name, less)) == default

    required()


@settings(max_examples=300, deadline=None)
@given(messages, st.data())
def test_what_encode_lets_out_decode_lets_in(message: Message, data: st.DataObject) -> None:
    """With one field replaced by anything, `encode` refuses as a local error, or all is well."""
    names = [field.name for field in fields(message)]
    if not names:
        return
    name = data.draw(st.sampled_from(names))
    anything = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=5),
        st.binary(max_size=20),
        st.just("x" * (MAX_NAME_BYTES + 1)),
        st.just("\ud800"),
        st.just({1: 2}),
        st.just({"set": {1}}),
        st.just((("",),)),
    )
    try:
        frame = encode(replace(message, **{name: data.draw(anything)}))
    except LocalProtocolError:
        return
    assert isinstance(decode(frame), type(message))


@pytest.mark.parametrize(
    "message",
    [
        Batch(1, 2, bytes(MAX_DATA_BYTES + 1)),
        Batch(2, 1, b"12345678"),
        Batch(0, 1, b"12345678"),
        Batch(1, 1, b""),
        Gap(1, MAX_SEQ + 1, ""),
        Nack("refused", "x" * (MAX_NAME_BYTES + 1)),
        Nack("refused", "é" * (MAX_NAME_BYTES // 2 + 1)),
        replace(HELLO, uuid=b"short"),
        replace(HELLO, host="\ud800"),
        replace(HELLO, run=RunSpec("run", "/logs", config={"x": "y" * MAX_CONFIG_BYTES})),
        replace(HELLO, run=RunSpec("run", "/logs", config={"x": object()})),
        replace(HELLO, run=RunSpec("run", "/logs", config={"x": 2**64})),
        replace(HELLO, run=RunSpec("run", "/logs", config={"x": {1: "key is no text"}})),
        replace(HELLO, run=RunSpec("run", "/logs", config={"x": [0] * (MAX_CONTAINER + 1)})),
        Tags(0, ()),
        Tags(0, ((),)),
        Tags(0, (("",),)),
        Tags(0, (("x" * (MAX_TAG_BYTES + 1),),)),
        Tags(0, (("é" * (MAX_TAG_BYTES // 2 + 1),),)),
        Tags(0, (tuple(map(str, range(MAX_TAGS_PER_RECORD + 1))),)),
        Ping(Books(-1, 0, 0)),
    ],
    ids=lambda message: repr(message)[:60],
)
def test_what_the_other_side_would_refuse_is_refused_here(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode(message)


def test_a_configuration_that_is_too_deep_or_circular_is_refused_here() -> None:
    deep: object = 0
    for _ in range(MAX_DEPTH):
        deep = [deep]
    circle: list[object] = []
    circle.append(circle)
    for config in (deep, circle):
        with pytest.raises(LocalProtocolError):
            encode(replace(HELLO, run=RunSpec("run", "/logs", config={"x": config})))


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"x": x}], ids=["lists", "maps"])
def test_a_configuration_may_be_as_deep_as_the_limit(wrap: Callable[[object], object]) -> None:
    """The message, its fields, the run and the configuration are four levels themselves."""
    inner: object = 0
    for _ in range(MAX_DEPTH - 4):
        inner = wrap(inner)
    hello = replace(HELLO, run=RunSpec("run", "/logs", config={"x": inner}))
    assert decode(encode(hello)) == hello
    with pytest.raises(LocalProtocolError):
        encode(replace(HELLO, run=RunSpec("run", "/logs", config={"x": wrap(inner)})))


def test_the_largest_batch_fits_into_a_frame() -> None:
    frame = encode(Batch(MAX_SEQ - 1, MAX_SEQ, bytes(MAX_DATA_BYTES)))
    assert len(frame) <= MAX_FRAME_BYTES
    frame = encode(Part(MAX_SEQ, MAX_RECORD_BYTES, MAX_RECORD_BYTES, bytes(MAX_DATA_BYTES)))
    assert len(frame) <= MAX_FRAME_BYTES


def test_the_limits_are_inclusive() -> None:
    for message in (
        Reject("x" * 64, "x" * MAX_NAME_BYTES),
        Tags(0, (("é" * (MAX_TAG_BYTES // 2),), tuple(map(str, range(MAX_TAGS_PER_RECORD))))),
        Ack(MAX_SEQ, MAX_SEQ, MAX_SEQ),
    ):
        assert decode(encode(message)) == message


# --- what is not -------------------------------------------------------------------------------


def test_unknown_kinds_are_refused_by_name() -> None:
    error = refusal(frame_of("teleport", {}))
    assert error.code == "unknown_kind"
    assert "'teleport'" in str(error)
    assert len(str(refusal(frame_of("x" * 100_000, {})))) < 200


def test_other_versions_are_refused_with_both_numbers() -> None:
    error = refusal(MAGIC + bytes([PROTOCOL_VERSION + 41]) + b"whatever")
    assert error.code == "version"
    assert str(PROTOCOL_VERSION + 41) in str(error)
    assert f"speaks {PROTOCOL_VERSION}" in str(error)


def test_a_frame_that_is_too_large_is_refused_before_it_is_unpacked() -> None:
    frame = VERSIONED + bytes(MAX_FRAME_BYTES)
    tracemalloc.start()
    try:
        assert refusal(frame).code == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cut", range(len(VERSIONED)))
def test_frames_shorter_than_their_prefix_are_refused(cut: int) -> None:
    assert refusal(VERSIONED[:cut]).code == "malformed"


@pytest.mark.parametrize(
    "envelope",
    [
        [],
        ["ping"],
        ["ping", {}, {}],
        ["ping", []],
        ["ping", None],
        [1, {}],
        [b"ping", {}],
        [None, {}],
    ],
    ids=str,
)
def test_only_kind_and_fields_make_a_message(envelope: list[object]) -> None:
    assert refusal(VERSIONED + msgpack.packb(envelope)).code == "malformed"
    assert refusal(VERSIONED + msgpack.packb({"ping": {}})).code == "malformed"
    assert refusal(encode(Ping()) + b"\xc0").code == "malformed"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("ack", {"durable_seq": True, "dropped": 0, "credit": 0}),
        ("ack", {"durable_seq": 1.0, "dropped": 0, "credit": 0}),
        ("ack", {"durable_seq": "1", "dropped": 0, "credit": 0}),
        ("ack", {"durable_seq": -1, "dropped": 0, "credit": 0}),
        ("ack", {"durable_seq": MAX_SEQ + 1, "dropped": 0, "credit": 0}),
        ("ack", {"durable_seq": None, "dropped": 0, "credit": 0}),
        ("gap", {"first_seq": 0, "last_seq": 1, "reason": ""}),
        ("gap", {"first_seq": 2, "last_seq": 1, "reason": ""}),
        ("batch", {"first_seq": 1, "last_seq": 1, "data": "text"}),
        ("batch", {"first_seq": 1, "last_seq": 1, "data": b""}),
        ("batch", {"first_seq": 1, "last_seq": 1, "data": [1, 2]}),
        ("batch", {"first_seq": 1, "last_seq": 1, "data": bytes(MAX_DATA_BYTES + 1)}),
        ("part", {"seq": 1, "offset": 0, "total": MAX_RECORD_BYTES + 1, "data": b"x"}),
        ("part", {"seq": 1, "offset": 0, "total": 0, "data": b"x"}),
        ("part", {"seq": 0, "offset": 0, "total": 1, "data": b"x"}),
        ("tags", {"first_id": 0, "tag_sets": []}),
        ("tags", {"first_id": 0, "tag_sets": [[]]}),
        ("tags", {"first_id": 0, "tag_sets": [["a", 1]]}),
        ("tags", {"first_id": 0, "tag_sets": [["a", ""]]}),
        ("tags", {"first_id": 0, "tag_sets": ["a"]}),
        ("ping", {"books": []}),
        ("ping", {"books": {"emitted": -1}}),
        ("alarm", {"tag": "", "state": "", "step": 0, "reason": ""}),
        ("alarm", {"tag": "t", "state": "", "step": MAX_SEQ + 1, "reason": ""}),
        ("reject", {"code": "x" * 65, "reason": ""}),
        ("hello", {"uuid": b"short", "instance": 0, "connection": 0, "run": {}}),
        ("hello", {"uuid": bytes(16), "instance": 0, "connection": 0, "run": {}}),
        *(
            (
                "hello",
                {
                    "uuid": bytes(16),
                    "instance": 0,
                    "connection": 0,
                    "run": {"name": "", "log_dir": "", "tensorboard": tensorboard},
                },
            )
            for tensorboard in (1, None, ".", [], {"folder": "x"}, {"folder": 5}, {"suffix": 5})
            + ({"suffix": "x" * 101},)
        ),
    ],
    ids=str,
)
def test_each_field_is_checked(kind: str, body: dict[str, object]) -> None:
    error = refusal(frame_of(kind, body))
    assert error.code in {"malformed", "too_large"}


def test_how_event_files_are_wanted_keeps_what_is_known() -> None:
    run = {"name": "", "log_dir": "", "tensorboard": {"folder": None, "suffix": ".x", "later": 1}}
    hello = decode(
        frame_of("hello", {"uuid": bytes(16), "instance": 0, "connection": 0, "run": run})
    )
    assert isinstance(hello, Hello)
    assert hello.run.tensorboard == {"suffix": ".x"}


@pytest.mark.parametrize("fields", [{"world_size": 1 << 40}, {"rank": 1 << 40}])
def test_a_world_of_more_ranks_than_can_be_remembered(fields: dict[str, int]) -> None:
    """A reduction that is shown without most of them would take all memory there is."""
    run = {"name": "", "log_dir": ""}
    body = {"uuid": bytes(16), "instance": 0, "connection": 0, "run": run, **fields}
    assert refusal(frame_of("hello", body)).code == "malformed"
    with pytest.raises(LocalProtocolError):
        encode(replace(HELLO, **fields))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x92",
        b"\x92\xa4ping",
        b"\x91" * 40 + b"\xc0",
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        b"\x92\xa4ping\x81\x01\x02",
        b"\x92\xa4ping\x81\xc4\x01a\x02",
        b"\x92\xa4ping\x81\x90\x02",
        b"\x92\xa4ping\x81\xa1\xff\x02",
        b"\x92\xa4ping\x81\xa1x\xd6\xff\x00\x00\x00\x01",
        b"\x92\xa4ping\x81\xa1x\xc7\x00\xff",
        b"\x92\xa4ping\x81\xa1x\xc7\x00\x07",
        b"\x92\xa4ping\x81\xa1x\xd4\x07\x00",
        b"\x92\xa4ping\x81\xa1x\xdd\xff\xff\xff\xff",
        b"\x92\xa4ping\x81\xa1x\xdf\xff\xff\xff\xff",
        b"\x92\xa4ping\x81\xa1x\xdb\xff\xff\xff\xff",
        b"\x92\xa4ping\x81\xa1x\xc6\xff\xff\xff\xff",
        b"\x92\xa4ping\x81\xa1x\xc9\xff\xff\xff\xff\x07",
        b"\x92\xa4ping\x81\xa1x" + b"\x91" * MAX_DEPTH + b"\xc0",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_hostile_messagepack_is_malformed_and_cheap(body: bytes) -> None:
    tracemalloc.start()
    try:
        assert refusal(VERSIONED + body).code == "malformed"
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("frame", "most_bytes"),
    [
        # Each header claims as many elements as it may; the decoder believes all that are open.
        (VERSIONED + b"\xdc\x20\x00" * 1000, 30 << 20),
        (VERSIONED + b"\xdc\x20\x00" * 300_000, 80 << 20),
        # A byte for an empty map is the dearest that a frame can hold.
        (VERSIONED + b"\xdc\x1f\xff" + (b"\xdc\x00\x7f" + b"\x80" * 127) * 8060, 90 << 20),
    ],
    ids=["claims", "many claims", "empty maps"],
)
def test_the_memory_that_a_frame_can_cost_is_bounded(frame: bytes, most_bytes: int) -> None:
    tracemalloc.start()
    try:
        refusal(frame)
        assert tracemalloc.get_traced_memory()[1] < most_bytes
    finally:
        tracemalloc.stop()


# --- the fuzz invariant ------------------------------------------------------------------------


def test_any_bytes_yield_a_message_or_a_remote_protocol_error() -> None:
    samples = [
        encode(message)
        for message in (
            HELLO,
            Tags(3, (("a", "b"), ("é",))),
            Batch(1, 9, bytes(40)),
            Part(2, 0, 100, b"x" * 50),
            Gap(1, 2, "full"),
            Ack(1, 2, 3),
            Nack("busy", "later"),
            Ping(Books(1, 2, 3)),
            Pong(),
        )
    ]
    found = [parse(mutant) for mutant in mutants(1, samples, 20_000)]
    errors = [error for error in found if isinstance(error, RemoteProtocolError)]
    assert 500 < len(errors) < 19_500  # else the mutants are too tame, or too wild, to say much
    codes = {error.code for error in errors}
    assert codes == {"malformed", "unknown_kind", "no_protocol", "version"}
    assert max(len(str(error)) for error in errors) < 300


def test_any_noise_behind_a_good_prefix() -> None:
    rng = random.Random(2)
    for _ in range(5_000):
        parse(VERSIONED + rng.randbytes(rng.randrange(40)))
        parse(VERSIONED + b"\x92\xa4ping" + rng.randbytes(rng.randrange(40)))


@settings(max_examples=30, deadline=None)
@given(messages)
def test_a_frame_cut_anywhere_is_malformed(message: Message) -> None:
    frame = encode(message)
    for cut in range(len(frame)):
        assert refusal(frame[:cut]).code == "malformed"


# --- tag sets that are reduced over ranks --------------------------------------------------------


def test_tag_sets_keep_their_reduction_on_the_wire() -> None:
    sets = (("a", "b"), ReducedTags(("a", "b"), "spread"), ReducedTags(("a",), "sum"))
    found = decode(encode(Tags(3, sets)))
    assert isinstance(found, Tags)
    assert found == Tags(3, sets)
    assert [reduction_of(tags) for tags in found.tag_sets] == ["", "spread", "sum"]


def test_a_reduced_tag_set_is_no_list_of_tags() -> None:
    """So that whoever does not know of reductions refuses it, and shows no part as the whole."""
    frame = encode(Tags(0, (ReducedTags(("a",), "mean"),)))
    _, fields = msgpack.unpackb(frame[4:])
    assert fields["tag_sets"] == [{"reduce": "mean", "tags": ["a"]}]


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"tags": ["a"]},
        {"reduce": "median", "tags": ["a"]},
        {"reduce": "mean"},
        {"reduce": "mean", "tags": []},
        {"reduce": "mean", "tags": [1]},
        {"reduce": ["mean"], "tags": ["a"]},
        "a",
        None,
    ],
)
def test_what_is_no_tag_set_is_refused(item: object) -> None:
    frame = b"SDS\1" + msgpack.packb(["tags", {"first_id": 0, "tag_sets": [item]}])
    with pytest.raises(RemoteProtocolError, match=r"tags\.tag_sets"):
        decode(frame)

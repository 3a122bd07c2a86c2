"""Any message, any record, and bytes that are almost one."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from hypothesis import strategies as st

from sidestep.proto import (
    Ack,
    Alarm,
    Array,
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
    Scalars,
    Tags,
    Value,
    Welcome,
)
from sidestep.proto.limits import MAX_RANKS, MAX_RECORD_BYTES, MAX_SEQ
from sidestep.proto.records import DTYPE_SIZES, MAX_NDIM
from sidestep.proto.tag_sets import REDUCTIONS, ReducedTags

uints = st.integers(0, MAX_SEQ)
seqs = st.integers(1, MAX_SEQ)
steps = st.integers(-MAX_SEQ - 1, MAX_SEQ)
names = st.text(st.characters(codec="utf-8"), max_size=40)
paths = names.map(lambda name: name.replace("\0", ""))
codes = st.text(st.characters(codec="utf-8"), max_size=16)
tags = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
blobs = st.binary(min_size=1, max_size=200)

settings_maps = st.dictionaries(
    names,
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False)
        | names
        | blobs,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)
"""What a configuration may hold: MessagePack's own types."""

books = st.builds(Books, uints, uints, uints)
run_specs = st.builds(
    RunSpec,
    name=names,
    log_dir=paths,
    tensorboard=st.booleans()
    | st.fixed_dictionaries({"suffix": st.text(max_size=25)}, optional={"folder": st.just(".")}),
    wandb=st.none() | settings_maps,
    config=settings_maps,
    tags=st.lists(names, max_size=3).map(tuple),
)
hellos = st.builds(
    Hello,
    uuid=st.binary(min_size=16, max_size=16),
    instance=uints,
    connection=uints,
    run=run_specs,
    rank=st.integers(0, MAX_RANKS - 1),
    world_size=st.integers(1, MAX_RANKS),
    attempt=uints,
    pid=uints,
    host=names,
    device_uuids=st.lists(names, max_size=3).map(tuple),
    outbox=paths,
    acked_seq=uints,
    acked_dropped=uints,
    min_version=uints,
    max_version=uints,
)
ranges = st.tuples(seqs, seqs).map(sorted)

tag_sets = st.builds(
    lambda found, reduce: ReducedTags(found, reduce) if reduce else tuple(found),
    st.lists(tags, min_size=1, max_size=4),
    st.sampled_from(["", *REDUCTIONS]),
)

MESSAGES: dict[type[Message], st.SearchStrategy[Message]] = {
    Hello: hellos,
    Welcome: st.builds(Welcome, uints, uints, uints, uints, uints, uints),
    Reject: st.builds(Reject, codes, names),
    Tags: st.builds(
        Tags,
        uints,
        st.lists(tag_sets, min_size=1, max_size=4).map(tuple),
    ),
    Batch: st.builds(lambda seqs, data: Batch(*seqs, data), ranges, blobs),
    Part: st.builds(
        Part, seqs, st.integers(0, MAX_RECORD_BYTES), st.integers(1, MAX_RECORD_BYTES), blobs
    ),
    Gap: st.builds(lambda seqs, reason: Gap(*seqs, reason), ranges, names),
    Ack: st.builds(Ack, uints, uints, uints),
    Nack: st.builds(Nack, codes, names, uints, uints),
    Alarm: st.builds(Alarm, tags, codes, steps, names),
    Ping: st.builds(Ping, books),
    Pong: st.builds(Pong, uints),
    Bye: st.builds(Bye, uints, books),
    ByeAck: st.builds(ByeAck, uints),
}
"""A strategy for each kind of message."""

messages = st.one_of(*MESSAGES.values())

float64s = st.integers(0, 2**64 - 1).map(lambda bits: bits.to_bytes(8, "little"))
"""Any float64 by its bits: NaNs with payloads, infinities and denormals too."""

scalars = st.builds(
    Scalars,
    tag_set=st.integers(0, 2**32 - 1),
    step=steps,
    time_ns=steps,
    values=st.lists(st.floats(), min_size=1, max_size=40).map(tuple),
)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    dtype = draw(st.sampled_from(sorted(DTYPE_SIZES)))
    shape = tuple(
        draw(st.lists(st.integers(0, 4), max_size=3 if draw(st.booleans()) else MAX_NDIM))
    )
    size = math.prod(shape) * DTYPE_SIZES[dtype]
    if size > 4096:
        shape, size = (3,), 3 * DTYPE_SIZES[dtype]
    return Array(dtype, shape, random.Random(draw(st.integers(0, 99))).randbytes(size))


values = st.builds(
    Value,
    kind=st.text(st.characters(codec="utf-8"), min_size=1, max_size=64),
    tag=tags,
    step=steps,
    time_ns=steps,
    info=settings_maps,
    arrays=st.lists(arrays(), max_size=3),
)


def mutants(seed: int, samples: list[bytes], count: int) -> Iterator[bytes]:
    """`count` byte strings near `samples`: flipped, cut, extended, spliced, or plain noise."""
    rng = random.Random(seed)
    for _ in range(count):
        data = bytearray(rng.choice(samples))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(data) + 1)
            match rng.randrange(6):
                case 0 if at < len(data):
                    data[at] = rng.randrange(256)
                case 1 if at < len(data):
                    data[at] ^= 1 << rng.randrange(8)
                case 2:
                    del data[at : at + rng.randint(1, 9)]
                case 3:
                    data[at:at] = rng.randbytes(rng.randint(1, 9))
                case 4:
                    data[at : at + 8] = rng.choice(_NASTY)
                case _:
                    other = rng.choice(samples)
                    data[at:] = other[rng.randrange(len(other) + 1) :]
        yield bytes(data) if rng.random() < 0.95 else rng.randbytes(rng.randrange(64))


_NASTY = [
    b"\xff" * 8,
    b"\x00" * 8,
    b"\x00\x00\x00\x00\x00\x00\x00\x80",
    b"\x91" * 40,  # nested lists
    b"\x81\xa1a" * 40,  # nested maps
    b"\xdd\xff\xff\xff\xff",  # a list of 2**32 - 1
    b"\xdf\xff\xff\xff\xff",  # a map as large
    b"\xc6\xff\xff\xff\xff",  # as many bytes
    b"\xdb\xff\xff\xff\xff",  # as much text
    b"\xc9\xff\xff\xff\xff\x01",  # an extension
    b"\xd6\xff\x00\x00\x00\x01",  # a timestamp
    b"\xa2\xc3\x28",  # text that is no UTF-8
    b"\xa3\xed\xa0\x80",  # half of a surrogate pair
    b"\xcf" + b"\xff" * 8,  # 2**64 - 1
    b"\xd3\x80" + b"\x00" * 7,  # -2**63
    b"\xcb\x7f\xf8" + b"\x00" * 6,  # NaN
    b"\xc3",  # true
    b"\xc1",  # never used
]

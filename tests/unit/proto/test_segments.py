"""An outbox whose writer was killed at any store yields exactly what had been committed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
from hypothesis import given, settings, strategies as st

from sidestep.proto import (
    Array,
    Batch,
    Gap,
    Hello,
    LocalProtocolError,
    Part,
    RemoteProtocolError,
    RunSpec,
    Scalars,
    Value,
    encode,
)
from sidestep.proto.limits import (
    MAX_DATA_BYTES,
    MAX_FRAME_BYTES,
    MAX_RECORD_BYTES,
    MAX_SEQ,
    MAX_TAG_BYTES,
    MAX_TAGS_PER_RECORD,
)
from sidestep.proto.records import encode_scalars, encode_value, walk
from sidestep.proto.segments import (
    ACKED_DROPPED,
    ACKED_SEQ,
    DROPPED,
    FREE,
    LARGE,
    LOST,
    PIECE,
    REJECTED,
    SMALL,
    STUB,
    TAGS_USED,
    Outbox,
    plan,
)
from sidestep.proto.tag_sets import ReducedTags, reduction_of

HELLO = Hello(b"u" * 16, 1, 0, RunSpec("run", "/logs", config={"lr": 1e-3}), outbox="/o")
BYTES = 64 << 10  # 11 segments of a page each

Held = dict[int, bytes | None]
"""What an outbox holds: for each record after the acknowledged ones its bytes, None if dropped."""


# --- a client ------------------------------------------------------------------------------------


class Stores:
    """Words of an outbox that tell of each store just before and just after it."""

    def __init__(self, words: memoryview, before: Callable[[], None], after: Callable[[], None]):
        self._words, self._before, self._after = words, before, after

    def __getitem__(self, at: int) -> int:
        return self._words[at]

    def __setitem__(self, at: int, value: int) -> None:
        self._before()
        self._words[at] = value
        self._after()


@dataclass
class Segment:
    index: int
    first_seq: int
    last_seq: int
    used: int = 0
    larges: dict[int, tuple[int, list[int]]] = field(default_factory=dict)  # seq: (offset, pieces)


class Client:
    """Writes an outbox as a client does: bytes first, then the one word that commits them."""

    def __init__(self) -> None:
        self.memory = bytearray(BYTES)
        self.outbox = Outbox.create(memoryview(self.memory), HELLO)
        self.layout = self.outbox.layout
        self.free = list(range(self.layout.segment_count))
        self.segments: list[Segment] = []
        self.tag_sets: list[tuple[str, ...]] = []
        self.next_seq = 1
        self.acked = self.acked_dropped = 0
        self.held: Held = {}
        self._open()

    def small(self, size: int) -> None:
        data = record(self.next_seq, size)
        if not self._has_room(len(data)):
            return
        segment = self.segments[-1]
        at = self.outbox.base(segment.index) + segment.used
        self.memory[at : at + len(data)] = data
        self._commit(segment, len(data), data)

    def large(self, size: int) -> None:
        data = large_record(self.next_seq, size)
        page = self.layout.segment_bytes
        count = -(-len(data) // page)
        if not self._has_room(STUB.size) or len(self.free) < count:
            return
        pieces = [self.free.pop() for _ in range(count)]
        for number, index in enumerate(pieces):
            piece = data[number * page : (number + 1) * page]
            base = self.outbox.base(index)
            self.memory[base : base + len(piece)] = piece
            self.outbox.open(index, PIECE, self.next_seq, len(piece), number)
        segment = self.segments[-1]
        at = self.outbox.base(segment.index) + segment.used
        STUB.pack_into(self.memory, at, STUB.size, LARGE, 0, 0, len(data))
        segment.larges[self.next_seq] = (segment.used, pieces)
        self._commit(segment, STUB.size, data)

    def drop_large(self, mark: bool) -> None:
        """Give up the oldest large record; without the mark its missing pieces tell."""
        for segment in self.segments:
            for seq, (offset, pieces) in segment.larges.items():
                if mark:
                    self.outbox.drop(self.outbox.base(segment.index) + offset)
                self._give_back(pieces)
                del segment.larges[seq]
                if seq > self.acked:
                    self.held[seq] = None
                return

    def drop_small(self, which: int) -> None:
        """Give up a whole segment, though not the one that is open."""
        if len(self.segments) > 1:
            segment = self.segments.pop(which % (len(self.segments) - 1))
            for _, pieces in segment.larges.values():
                self._give_back(pieces)
            self._give_back([segment.index])
            for seq in range(max(segment.first_seq, self.acked + 1), segment.last_seq + 1):
                self.held[seq] = None

    def ack(self, portion: float) -> None:
        upto = self.acked + int(portion * (self.next_seq - 1 - self.acked))
        for seq in range(self.acked + 1, upto + 1):
            self.acked_dropped += self.held.pop(seq) is None
        self.acked = upto
        self.outbox.words[ACKED_SEQ] = upto
        self.outbox.words[ACKED_DROPPED] = self.acked_dropped
        while len(self.segments) > 1 and self.segments[0].last_seq <= upto:
            segment = self.segments.pop(0)
            self._give_back([segment.index])
            for _, pieces in segment.larges.values():
                self._give_back(pieces)
        for segment in self.segments:
            for seq in [seq for seq in segment.larges if seq <= upto]:
                self._give_back(segment.larges.pop(seq)[1])

    def define(self, tags: tuple[str, ...]) -> None:
        if self.outbox.define_tags(tags):
            self.tag_sets.append(tags)

    def _has_room(self, size: int) -> bool:
        if self.segments[-1].used + size <= self.layout.segment_bytes:
            return True
        return bool(self.free) and self._open()

    def _open(self) -> bool:
        index = self.free.pop()
        self.outbox.open(index, SMALL, self.next_seq)
        self.segments.append(Segment(index, self.next_seq, self.next_seq - 1))
        return True

    def _commit(self, segment: Segment, size: int, data: bytes) -> None:
        self.outbox.table[self.outbox.used_word(segment.index)] = segment.used + size
        segment.used += size
        segment.last_seq = self.next_seq
        self.held[self.next_seq] = data
        self.next_seq += 1

    def _give_back(self, indices: list[int]) -> None:
        for index in indices:
            self.outbox.free(index)
            self.free.append(index)


def record(seq: int, size: int) -> bytes:
    return encode_scalars(Scalars(0, seq, size, (float(seq),) * max(1, size // 8)))


def large_record(seq: int, size: int) -> bytes:
    data = random.Random(seq).randbytes(size)
    value = Value("blob", "t", seq, 0, {}, [Array("uint8", (size,), data)])
    return b"".join(encode_value(value)[1])


def adopt(memory: bytes) -> tuple[Hello, list[tuple[str, ...]], Held]:
    """What a daemon finds."""
    outbox = Outbox.attach(memoryview(memory))
    hello = outbox.hello()
    return hello, list(outbox.tag_sets()), held(outbox, hello.acked_seq)


def held(outbox: Outbox, acked_seq: int) -> Held:
    """The messages of an outbox as records; they must be complete and in order."""
    found: Held = {}
    parts = b""
    last = None
    for message in outbox.messages():
        first = message.seq if isinstance(message, Part) else message.first_seq
        if last is not None and not parts:
            assert first == last + 1, f"{first} after {last}"
        match message:
            case Batch(first_seq, last_seq, data):
                spans = list(walk(data))
                assert len(spans) == last_seq - first_seq + 1
                for seq, (at, length, _) in enumerate(spans, first_seq):
                    found[seq] = data[at : at + length]
            case Part(seq, offset, total, data):
                assert offset == len(parts)
                parts += data
                if len(parts) == total:
                    found[seq], parts = parts, b""
            case Gap(first_seq, last_seq):
                found.update(dict.fromkeys(range(first_seq, last_seq + 1)))
        last = message.seq if isinstance(message, Part) else message.last_seq
    assert not parts
    return {seq: data for seq, data in found.items() if seq > acked_seq}


def changes(client: Client, change: Callable[[], None]) -> Iterator[bytes]:
    """Make `change`; yield the memory as a kill at each store would have left it."""
    after = [bytes(client.memory)]
    moments = [after[0]]
    rng = random.Random(client.next_seq)

    def before_store() -> None:
        # What is not a word is copied byte by byte, and a kill may fall into the middle.
        cut = rng.randrange(BYTES)
        now = bytes(client.memory)
        moments.extend([now[:cut] + after[-1][cut:], now])

    def after_store() -> None:
        after.append(bytes(client.memory))
        moments.append(after[-1])

    words, table = client.outbox.words, client.outbox.table
    client.outbox.words = Stores(words, before_store, after_store)  # type: ignore[assignment]
    client.outbox.table = Stores(table, before_store, after_store)  # type: ignore[assignment]
    try:
        change()
    finally:
        client.outbox.words, client.outbox.table = words, table
    yield from moments
    yield bytes(client.memory)


CHANGES = st.one_of(
    st.tuples(st.just("small"), st.integers(8, 900)),
    st.tuples(st.just("small"), st.just(4000)),
    st.tuples(st.just("large"), st.integers(4096, 20_000)),
    st.tuples(st.just("large"), st.just(2 * 4096 - 80)),
    st.tuples(st.just("drop_large"), st.booleans()),
    st.tuples(st.just("drop_small"), st.integers(0, 9)),
    st.tuples(st.just("ack"), st.floats(0.0, 1.0)),
    st.tuples(st.just("define"), st.lists(st.text("ab/é", min_size=1), min_size=1).map(tuple)),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(CHANGES, min_size=5, max_size=40))
def test_killed_at_any_store_it_holds_what_was_committed(
    script: list[tuple[str, object]],
) -> None:
    client = Client()
    for name, argument in script:
        before, tags_before = dict(client.held), list(client.tag_sets)
        moments = list(changes(client, partial(getattr(client, name), argument)))
        changed: set[int] = set()  # what has changed stays so, at every later store
        for moment in moments:
            hello, tag_sets, found = adopt(moment)
            assert replace(hello, acked_seq=0, acked_dropped=0) == HELLO
            assert tag_sets in (tags_before, client.tag_sets)
            for seq in range(hello.acked_seq + 1, client.next_seq):
                is_now = found.get(seq, b"nothing")
                if is_now != before.get(seq, b"nothing") or seq in changed:
                    assert is_now == client.held.get(seq, b"nothing")
                    changed.add(seq)
            assert max(found, default=0) < client.next_seq
        assert (tag_sets, found) == (client.tag_sets, client.held)
        assert (hello.acked_seq, hello.acked_dropped) == (client.acked, client.acked_dropped)


def test_an_outbox_in_which_nothing_was_written_is_empty() -> None:
    memory = bytearray(BYTES)
    outbox = Outbox.create(memoryview(memory), replace(HELLO, acked_seq=7, acked_dropped=3))
    assert adopt(memory) == (replace(HELLO, acked_seq=7, acked_dropped=3), [], {})
    outbox.open(0, SMALL, 8)
    assert adopt(memory) == (replace(HELLO, acked_seq=7, acked_dropped=3), [], {})


def test_killed_while_it_is_created_it_is_no_outbox_yet() -> None:
    memory = bytearray(BYTES)
    Outbox.create(memoryview(memory), HELLO)
    whole = bytes(memory)
    head = struct.calcsize("<8sQQQQQ")
    for written in range(head):
        torn = whole[:written] + bytes(head - written) + whole[head:]
        if torn != whole:
            with pytest.raises(RemoteProtocolError):
                Outbox.attach(memoryview(torn))


def test_records_that_lie_together_travel_together() -> None:
    client = Client()
    for _ in range(5):
        client.small(8)
    client.large(5000)
    client.drop_large(mark=True)
    for _ in range(5):
        client.small(8)
    found = [
        (type(message), message.first_seq, message.last_seq)
        for message in client.outbox.messages()
        if not isinstance(message, Part)
    ]
    assert found == [(Batch, 1, 5), (Gap, 6, 6), (Batch, 7, 11)]


def test_pieces_without_their_stub_say_nothing() -> None:
    client = Client()
    client.small(8)
    client.outbox.open(5, PIECE, 2, 4096, 0)
    assert adopt(client.memory)[2] == client.held


def test_pieces_of_an_older_record_are_not_taken_for_a_newer_one() -> None:
    client = Client()
    client.large(5000)
    client.drop_large(mark=False)
    client.large(6000)
    assert adopt(client.memory)[2] == client.held == {1: None, 2: large_record(2, 6000)}


def test_a_record_is_dropped_with_one_store() -> None:
    client = Client()
    client.small(8)
    client.large(5000)
    was = bytes(client.memory)
    client.outbox.drop(client.outbox.base(client.segments[0].index) + client.segments[0].used - 16)
    assert sum(a != b for a, b in zip(was, client.memory, strict=True)) == 1
    assert adopt(client.memory)[2] == {1: record(1, 8), 2: None}


def test_a_read_only_map_can_be_adopted() -> None:
    client = Client()
    client.small(100)
    client.define(("a", "b"))
    hello, tag_sets, found = adopt(bytes(client.memory))
    assert (hello.run, tag_sets, found) == (HELLO.run, [("a", "b")], client.held)


def test_closing_releases_the_memory() -> None:
    memory = bytearray(BYTES)
    outbox = Outbox.create(memoryview(memory), HELLO)
    with pytest.raises(BufferError):
        memory.append(0)
    outbox.close()
    memory.append(0)


def test_tag_sets_beyond_their_room_are_declined_and_the_others_stay() -> None:
    client = Client()
    for n in range(100):
        client.define((f"{n}" * 500, "b"))
    assert 0 < len(client.tag_sets) < 100
    assert adopt(client.memory)[1] == client.tag_sets


# --- the layout --------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 22) | st.integers(0, 1 << 33), st.integers(1, MAX_FRAME_BYTES))
def test_everything_has_its_place(total: int, hello_bytes: int) -> None:
    try:
        layout = plan(total, hello_bytes)
    except LocalProtocolError as error:
        # The size that the error names is large enough.
        named = int(str(error).split(": ")[1].split()[0])
        assert named > total
        layout = plan(named, hello_bytes)
    assert layout.segment_count >= 8
    assert layout.segment_bytes <= MAX_DATA_BYTES
    # Each area begins at the first page after the one before it.
    assert 0 <= layout.table_at - (4096 + hello_bytes) < 4096
    assert 0 <= layout.tags_at - (layout.table_at + 32 * layout.segment_count) < 4096
    assert 0 <= layout.segments_at - (layout.tags_at + layout.tags_bytes) < 4096
    assert layout.segments_at + layout.segment_bytes * layout.segment_count <= layout.total
    for offset in (layout.table_at, layout.tags_at, layout.segments_at, layout.segment_bytes):
        assert offset % 4096 == 0


def test_the_default_size_is_used_well() -> None:
    layout = plan(64 << 20, 1000)
    assert layout.segment_bytes == 256 << 10
    assert layout.segment_count * layout.segment_bytes > 0.92 * layout.total
    assert layout.max_small_bytes == 64 << 10


def test_the_layout_is_the_documented_one() -> None:
    assert (FREE, SMALL, PIECE, LARGE, DROPPED) == (0, 1, 2, 3, 4)
    assert (TAGS_USED, ACKED_SEQ, ACKED_DROPPED, LOST, REJECTED) == (0, 1, 2, 3, 4)
    client = Client()
    client.small(16)
    client.define(("a",))
    layout, memory = client.layout, client.memory
    frame = encode(HELLO)
    assert struct.unpack_from("<8sQQQQQ", memory) == (
        b"SDSOUT01",
        layout.segment_bytes,
        layout.segment_count,
        len(frame),
        layout.tags_bytes,
        BYTES,
    )
    assert memory[4096 : 4096 + len(frame)] == frame
    assert struct.unpack_from("<5Q", memory, 64) == (7, 0, 0, 0, 0)  # tags used, acked, ...
    assert memory[layout.tags_at : layout.tags_at + 7] == b"\x03\x00\x00\x00\x91\xa1a"
    index = client.segments[0].index
    assert struct.unpack_from("<4Q", memory, layout.table_at + 32 * index) == (SMALL, 1, 48, 0)


# --- hostile memory ----------------------------------------------------------------------------


def refused(memory: bytes | bytearray) -> None:
    with pytest.raises(RemoteProtocolError):
        adopt(memory)


def with_words(memory: bytearray, offset: int, *words: int) -> bytearray:
    copy = bytearray(memory)
    struct.pack_into(f"<{len(words)}Q", copy, offset, *words)
    return copy


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, BYTES])
def test_what_is_no_outbox_is_refused(size: int) -> None:
    refused(bytes(size))
    refused(random.Random(size).randbytes(size))


@pytest.mark.parametrize("size", [4096, BYTES // 2, BYTES - 1, BYTES + 1])
def test_an_outbox_of_another_size_is_refused(size: int) -> None:
    refused(bytes(Client().memory.ljust(size, b"\0"))[:size])


@pytest.mark.parametrize("word", range(1, 6))
@pytest.mark.parametrize("value", [0, 1, 8, 4095, 2**20, 2**32, 2**63, 2**64 - 1])
def test_a_header_that_contradicts_itself_is_refused(word: int, value: int) -> None:
    client = Client()
    if struct.unpack_from("<Q", client.memory, 8 * word)[0] != value:
        memory = with_words(client.memory, 8 * word, value)
        if word == 2 and 0 < value < client.layout.segment_count:
            return  # fewer segments than there are: nothing contradicts that
        if word == 4 and value < client.layout.tags_bytes:
            return  # as with tag sets
        refused(memory)


@pytest.fixture
def filled() -> Client:
    client = Client()
    for size in (8, 100, 900):
        client.small(size)
    client.define(("a", "b"))
    client.define(("c",))
    client.large(9000)
    for _ in range(20):
        client.small(800)
    client.large(5000)
    client.drop_large(mark=True)
    client.ack(0.1)
    return client


def entry_at(client: Client, segment: Segment) -> int:
    return client.layout.table_at + 32 * segment.index


@pytest.mark.parametrize("used", [1, 4, 7, 9, 4097, 2**32, 2**64 - 1])
def test_a_segment_that_claims_impossible_bytes_is_refused(filled: Client, used: int) -> None:
    segment = filled.segments[-1]
    refused(with_words(filled.memory, entry_at(filled, segment) + 16, used))


@pytest.mark.parametrize("seq", [0, MAX_SEQ, MAX_SEQ + 1, 2**64 - 1])
def test_a_segment_that_begins_at_an_impossible_number_is_refused(filled: Client, seq: int) -> None:
    segment = filled.segments[-1]
    refused(with_words(filled.memory, entry_at(filled, segment) + 8, seq))


@pytest.mark.parametrize("length", [0, 4, 7, 12, 4096 + 8, 2**32 - 1])
def test_a_record_of_impossible_length_is_refused(filled: Client, length: int) -> None:
    at = filled.outbox.base(filled.segments[0].index)
    filled.memory[at : at + 4] = struct.pack("<I", length)
    refused(filled.memory)


@pytest.mark.parametrize("total", [0, MAX_RECORD_BYTES + 1, 2**62, 2**64 - 1])
def test_a_large_record_of_impossible_size_is_refused_at_once(filled: Client, total: int) -> None:
    segment = next(s for s in filled.segments if s.larges)
    ((offset, _),) = segment.larges.values()
    at = filled.outbox.base(segment.index) + offset
    refused(with_words(filled.memory, at + 8, total))


@pytest.mark.parametrize("kind", [0, 5, 255])
def test_a_record_of_unknown_kind_is_refused(filled: Client, kind: int) -> None:
    filled.memory[filled.outbox.base(filled.segments[0].index) + 4] = kind
    refused(filled.memory)


@pytest.mark.parametrize(
    ("acked_seq", "acked_dropped"), [(MAX_SEQ + 1, 0), (2**64 - 1, 0), (3, 4), (0, 2**64 - 1)]
)
def test_impossible_acknowledgements_are_refused(
    filled: Client, acked_seq: int, acked_dropped: int
) -> None:
    refused(with_words(filled.memory, 64 + 8 * ACKED_SEQ, acked_seq, acked_dropped))


@pytest.mark.parametrize(
    "definition",
    [b"\x90", b"\x91\xa0", b"\x91\x01", b"\xc0", b"\x81\xa1a\x01", b"\xc1", b"\xa1a"]
    + [b"\xda\x04\x01" + b"x" * (MAX_TAG_BYTES + 1)]
    + [b"\xdc\x10\x01" + b"\xa1a" * (MAX_TAGS_PER_RECORD + 1)],
    ids=lambda definition: repr(definition[:12]),
)
def test_a_damaged_tag_set_is_refused(filled: Client, definition: bytes) -> None:
    at = filled.layout.tags_at
    if len(definition) + 4 <= filled.layout.tags_bytes:
        filled.memory[at : at + 4] = struct.pack("<I", len(definition))
        filled.memory[at + 4 : at + 4 + len(definition)] = definition
        filled.memory[64 + 8 * TAGS_USED : 72] = struct.pack("<Q", 4 + len(definition))
        refused(filled.memory)
    filled.memory[at : at + 4] = b"\xff\xff\xff\xff"
    refused(filled.memory)


def test_an_outbox_without_a_hello_is_refused(filled: Client) -> None:
    short = len(encode(Gap(1, 2, "x" * 40))) - 40
    other = encode(Gap(1, 2, "x" * (filled.layout.hello_bytes - short)))
    assert len(other) == filled.layout.hello_bytes
    for frame in (other, bytes(filled.layout.hello_bytes), encode(HELLO)[:-1] + b"\xc1"):
        filled.memory[4096 : 4096 + filled.layout.hello_bytes] = frame
        refused(filled.memory)


def test_damaged_memory_is_adopted_or_refused_and_nothing_else(filled: Client) -> None:
    """Whatever is in the memory, each message that comes out of it could have been sent."""
    rng = random.Random(5)
    layout, outbox = filled.layout, filled.outbox
    places = [0, 64, 4096, layout.table_at, layout.tags_at]
    places += [outbox.base(segment.index) for segment in filled.segments]
    words = [0, 1, 2, 3, 7, 8, 16, 4096, 2**31, 2**32 + 8, 2**63 - 1, 2**63, 2**64 - 1]
    adopted = 0
    for _ in range(4000):
        memory = bytearray(filled.memory)
        for _ in range(rng.randint(1, 4)):
            at = rng.choice(places) + 8 * rng.randrange(rng.choice([6, 20, 100]))
            match rng.randrange(3):
                case 0:
                    struct.pack_into("<Q", memory, at, rng.choice(words))
                case 1:
                    memory[at + rng.randrange(8)] ^= 1 << rng.randrange(8)
                case _:
                    memory[at : at + 8] = rng.randbytes(8)
        try:
            found = Outbox.attach(memoryview(memory))
            encode(found.hello())
            assert all(len(tags) > 0 for tags in found.tag_sets())
            for message in found.messages():
                encode(message)
            adopted += 1
        except RemoteProtocolError:
            pass
    assert 400 < adopted < 3600  # else the damage is too much, or too little, to say much


def test_no_large_record_is_asked_for_by_two_segments(filled: Client) -> None:
    """Or a hostile outbox of 64 MiB would be read as many gigabytes."""
    layout, outbox = filled.layout, filled.outbox
    small = [i for i in range(layout.segment_count) if outbox.table[4 * i] == SMALL]
    first, second = sorted(small, key=lambda i: outbox.table[4 * i + 1])[:2]
    outbox.table[4 * second + 1] = outbox.table[4 * first + 1]
    refused(filled.memory)


def test_an_adopted_outbox_knows_what_is_reduced() -> None:
    memory = memoryview(bytearray(256 << 10))
    outbox = Outbox.create(memory, Hello(bytes(16), 0, 0, RunSpec("r", "/l")))
    sets = [("a", "b"), ReducedTags(("a", "b"), "mean"), ReducedTags(("b",), "max")]
    assert all(outbox.define_tags(tags) for tags in sets)
    found = list(Outbox.attach(memory.toreadonly()).tag_sets())
    assert found == sets
    assert [reduction_of(tags) for tags in found] == ["", "mean", "max"]

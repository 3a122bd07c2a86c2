"""The layout of an outbox: what a client writes into shared memory and a daemon may adopt.

An outbox is a fixed-size buffer (a memory-mapped file) that survives its process. It is cut into
segments. Each segment is free, holds small records one after the other, or holds a piece of one
large record::

    +--------+-------------+---------------+-----------+-----------+-----
    | header | hello frame | segment table | tag sets  | segment 0 | ...
    +--------+-------------+---------------+-----------+-----------+-----

Why segments and not one ring: when the outbox is full, large payloads go first, wherever they
lie, then the oldest numbers; with segments both are given back in constant time and nothing is
moved. A record's sequence number follows from its segment's first one, so a record has none.

Crash safety. A process can be killed between any two stores. Everything that makes bytes valid
is ONE aligned 64-bit store, done last: a segment's `used` (commits records), a segment's `state`
(opens or frees it), `tags_used` (commits a tag set). Whoever adopts the buffer therefore sees each
record whole or not at all.

Inside a segment of small records two more kinds of record may stand, which never travel:
LARGE (the record with this number lies in large segments) and DROPPED (it was given up).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from struct import Struct
from typing import Final

from . import messages as m
from ._unpack import unpack
from .codec import decode, encode
from .errors import LocalProtocolError, RemoteProtocolError
from .limits import (
    MAX_DATA_BYTES,
    MAX_RECORD_BYTES,
    MAX_SEQ,
    MAX_SMALL_RECORD_BYTES,
)
from .records import HEADER, SCALARS, VALUE
from .tag_sets import checked, packed

LARGE: Final = 3
DROPPED: Final = 4
STUB: Final = Struct("<IBBHQ")
"""A LARGE or DROPPED record: header, then the total length of the large record."""

FREE: Final = 0
SMALL: Final = 1
PIECE: Final = 2

_MAGIC: Final = b"SDSOUT01"
_HEAD: Final = Struct("<8sQQQQQ")  # magic, segment bytes, segments, hello bytes, tags bytes, total
_PAGE: Final = 4096
_ENTRY: Final = 4  # words of a segment's entry: state, first_seq, used, piece
_TAG_SET_HEAD: Final = Struct("<I")

# Indices of the mutable words; they begin at byte 64.
_WORDS_AT: Final = 64
TAGS_USED: Final = 0
ACKED_SEQ: Final = 1
ACKED_DROPPED: Final = 2
LOST: Final = 3  # accepted by emit, dropped before they got a number
REJECTED: Final = 4
FINISHED: Final = 5  # 1 when the client ended well, with a daemon or without
_WORDS: Final = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything lies in an outbox of `total` bytes.

    Attributes:
        total: bytes of the whole buffer.
        hello_bytes: bytes of the client's HELLO frame.
        segment_bytes: bytes of one segment, a multiple of the page.
        segment_count: how many segments there are.
        tags_bytes: room for the definitions of tag sets.
    """

    total: int
    hello_bytes: int
    segment_bytes: int
    segment_count: int
    tags_bytes: int

    @property
    def table_at(self) -> int:
        """Offset of the segment table."""
        return _align(_PAGE + self.hello_bytes)

    @property
    def tags_at(self) -> int:
        """Offset of the tag sets."""
        return _align(self.table_at + 8 * _ENTRY * self.segment_count)

    @property
    def segments_at(self) -> int:
        """Offset of segment 0."""
        return _align(self.tags_at + self.tags_bytes)

    @property
    def max_small_bytes(self) -> int:
        """The largest record that goes into a segment with others."""
        return min(MAX_SMALL_RECORD_BYTES, self.segment_bytes)


def plan(total: int, hello_bytes: int) -> Layout:
    """Divide `total` bytes: a sixteenth for tag sets, the rest for 16 to 256 segments.

    Raises:
        LocalProtocolError: `total` is too small to hold anything useful.
    """
    segment_bytes = min(256 << 10, max(_PAGE, (total // 64) & -_PAGE))
    tags_bytes = _align(total // 16)
    fixed = Layout(total, hello_bytes, segment_bytes, 0, tags_bytes).segments_at
    # The table grows with the segments: a page of it describes 128 of them.
    count = (total - fixed - _PAGE - 8 * _ENTRY * (total // segment_bytes)) // segment_bytes
    if count < 8:
        raise LocalProtocolError(
            f"an outbox of {total} bytes is too small: {max(256 << 10, fixed * 2)} or more"
        )
    return Layout(total, hello_bytes, segment_bytes, count, tags_bytes)


class Outbox:
    """The words and bytes of an outbox over `buffer`: reads and single-store writes, no policy.

    Args:
        buffer: writable for `create`, may be read-only for `attach`.
        layout: where things lie.
    """

    def __init__(self, buffer: memoryview, layout: Layout) -> None:
        self.layout = layout
        self.buffer = buffer
        words_end = _WORDS_AT + 8 * _WORDS
        table_end = layout.table_at + 8 * _ENTRY * layout.segment_count
        self.words = buffer[_WORDS_AT:words_end].cast("Q")
        self.table = buffer[layout.table_at : table_end].cast("Q")

    @classmethod
    def create(cls, buffer: memoryview, hello: m.Hello) -> Outbox:
        """Lay out a zeroed `buffer` for the client that `hello` introduces."""
        frame = encode(hello)
        layout = plan(len(buffer), len(frame))
        outbox = cls(buffer, layout)
        buffer[_PAGE : _PAGE + len(frame)] = frame
        outbox.words[ACKED_SEQ] = hello.acked_seq
        outbox.words[ACKED_DROPPED] = hello.acked_dropped
        _HEAD.pack_into(
            buffer,
            0,
            _MAGIC,
            layout.segment_bytes,
            layout.segment_count,
            layout.hello_bytes,
            layout.tags_bytes,
            layout.total,
        )
        return outbox

    @classmethod
    def attach(cls, buffer: memoryview) -> Outbox:
        """Find an outbox in `buffer`.

        Raises:
            RemoteProtocolError: there is none, or its header contradicts itself.
        """
        if len(buffer) < _PAGE:
            raise RemoteProtocolError("malformed", f"an outbox of {len(buffer)} bytes")
        magic, segment_bytes, count, hello_bytes, tags_bytes, total = _HEAD.unpack_from(buffer)
        layout = Layout(total, hello_bytes, segment_bytes, count, tags_bytes)
        whole = 0 < segment_bytes <= MAX_DATA_BYTES and segment_bytes % _PAGE == 0
        if magic != _MAGIC or total != len(buffer) or not whole or count == 0:
            raise RemoteProtocolError("malformed", "this file is no outbox of this version")
        if layout.segments_at + segment_bytes * count > total:
            raise RemoteProtocolError("malformed", "the outbox's header does not fit its size")
        return cls(buffer, layout)

    # --- the client's side ---------------------------------------------------------------

    def base(self, index: int) -> int:
        """Offset of segment `index` in the buffer."""
        return self.layout.segments_at + index * self.layout.segment_bytes

    def used_word(self, index: int) -> int:
        """Index into `table` of the word that commits records of segment `index`."""
        return index * _ENTRY + 2

    def open(self, index: int, state: int, first_seq: int, used: int = 0, piece: int = 0) -> None:
        """Take a free segment: valid once its state is stored, which is done last."""
        at = index * _ENTRY
        self.table[at + 1] = first_seq
        self.table[at + 2] = used
        self.table[at + 3] = piece
        self.table[at] = state

    def free(self, index: int) -> None:
        """Give a segment back."""
        self.table[index * _ENTRY] = FREE

    def drop(self, at: int) -> None:
        """Turn the LARGE record at offset `at` into a DROPPED one, with a single store."""
        self.buffer[at + 4] = DROPPED

    def define_tags(self, tags: tuple[str, ...]) -> bool:
        """Append a tag set; False when there is no room for it."""
        data = packed(tags)
        used = self.words[TAGS_USED]
        size = _TAG_SET_HEAD.size + len(data)
        if used + size > self.layout.tags_bytes:
            return False
        at = self.layout.tags_at + used
        _TAG_SET_HEAD.pack_into(self.buffer, at, len(data))
        self.buffer[at + _TAG_SET_HEAD.size : at + size] = data
        self.words[TAGS_USED] = used + size
        return True

    def close(self) -> None:
        """Release the views, so that the memory map can be closed."""
        self.words.release()
        self.table.release()
        self.buffer.release()

    # --- the daemon's side ---------------------------------------------------------------

    def hello(self) -> m.Hello:
        """The HELLO of the client that wrote this outbox, with what was acknowledged since.

        Raises:
            RemoteProtocolError: there is no valid HELLO in it.
        """
        message = decode(self.buffer[_PAGE : _PAGE + self.layout.hello_bytes])
        if not isinstance(message, m.Hello):
            raise RemoteProtocolError("malformed", "the outbox does not begin with a HELLO")
        acked_seq, acked_dropped = self.words[ACKED_SEQ], self.words[ACKED_DROPPED]
        if not acked_dropped <= acked_seq <= MAX_SEQ:
            raise RemoteProtocolError("malformed", f"{acked_dropped} of {acked_seq} were dropped")
        return replace(message, acked_seq=acked_seq, acked_dropped=acked_dropped)

    def tag_sets(self) -> Iterator[tuple[str, ...]]:
        """All tag sets, in the order of their ids.

        Raises:
            RemoteProtocolError: a definition is damaged.
        """
        at = self.layout.tags_at
        end = at + min(self.words[TAGS_USED], self.layout.tags_bytes)
        while at + _TAG_SET_HEAD.size <= end:
            (size,) = _TAG_SET_HEAD.unpack_from(self.buffer, at)
            at += _TAG_SET_HEAD.size
            if at + size > end:
                raise RemoteProtocolError("malformed", "a tag set is cut off")
            yield checked(unpack(self.buffer[at : at + size]))
            at += size

    def messages(self) -> Iterator[m.Batch | m.Part | m.Gap]:
        """Everything that lies in the outbox, in order, as the client would have sent it.

        Raises:
            RemoteProtocolError: a segment is damaged.
        """
        entries = [
            self.table[i * _ENTRY : (i + 1) * _ENTRY].tolist()
            for i in range(self.layout.segment_count)
        ]
        small = sorted((e[1], i) for i, e in enumerate(entries) if e[0] == SMALL)
        pieces: dict[int, list[tuple[int, int]]] = {}
        for index, (state, seq, _used, piece) in enumerate(entries):
            if state == PIECE:
                pieces.setdefault(seq, []).append((piece, index))
        expected = self.words[ACKED_SEQ] + 1
        known = 0  # the last number that a segment has had
        for first_seq, index in small:
            used = entries[index][2]
            # No record is shorter than its header, so that it has at most that many numbers.
            in_range = 0 < first_seq <= MAX_SEQ - used // HEADER.size
            if not in_range or used > self.layout.segment_bytes or used % 8:
                raise RemoteProtocolError("malformed", f"segment of {used} bytes at {first_seq}")
            if first_seq <= known:
                # Or one large record could be asked for by every segment, and never end.
                raise RemoteProtocolError("malformed", f"two segments with record {first_seq}")
            if first_seq > expected:
                yield m.Gap(expected, first_seq - 1, "dropped by the client: outbox full")
            for message in self._small(index, first_seq, used, pieces):
                yield message
                known = message.seq if isinstance(message, m.Part) else message.last_seq
                expected = known + 1

    def _small(
        self, index: int, first_seq: int, used: int, pieces: dict[int, list[tuple[int, int]]]
    ) -> Iterator[m.Batch | m.Part | m.Gap]:
        """The messages that a segment of small records stands for."""
        base = self.base(index)
        data = self.buffer[base : base + used]
        start = at = 0
        seq = batch_seq = first_seq
        while at < used:
            length, kind = HEADER.unpack_from(data, at)[:2]
            if not HEADER.size <= length <= used - at or length % 8:
                raise RemoteProtocolError("malformed", f"record of {length} bytes in a segment")
            if kind not in (SCALARS, VALUE):
                if at > start:
                    yield m.Batch(batch_seq, seq - 1, bytes(data[start:at]))
                yield from self._stub(seq, kind, data[at : at + length], pieces.get(seq, []))
                start, batch_seq = at + length, seq + 1
            at += length
            seq += 1
        if at > start:
            yield m.Batch(batch_seq, seq - 1, bytes(data[start:at]))

    def _stub(
        self, seq: int, kind: int, stub: memoryview, pieces: list[tuple[int, int]]
    ) -> Iterator[m.Part | m.Gap]:
        if kind not in (LARGE, DROPPED) or len(stub) != STUB.size:
            raise RemoteProtocolError("malformed", f"record of kind {kind} in a segment")
        total, size = STUB.unpack(stub)[4], self.layout.segment_bytes
        if not 0 < total <= MAX_RECORD_BYTES:
            raise RemoteProtocolError("malformed", f"large record of {total} bytes")
        whole = [piece for piece, _ in sorted(pieces)] == list(range(-(-total // size)))
        if kind == DROPPED or not whole:
            yield m.Gap(seq, seq, "dropped by the client: outbox full")
            return
        for piece, index in sorted(pieces):
            offset, base = piece * size, self.base(index)
            data = self.buffer[base : base + min(size, total - offset)]
            yield m.Part(seq, offset, total, bytes(data))


def _align(offset: int) -> int:
    return (offset + _PAGE - 1) & -_PAGE

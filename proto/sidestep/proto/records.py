"""The records: how one measured value lies in the outbox, on the wire and in the journal.

A record is the same bytes everywhere, so nothing between the trainer and a sink encodes it
twice. Records follow each other without a gap; each is a multiple of eight bytes long, so
that a reader may look at its float64s in place. All integers are little-endian::

    0       4     5      6          8
    +-------+-----+------+----------+------------------------------------------+
    | length| kind| flags| reserved | body                                     |
    +-------+-----+------+----------+------------------------------------------+

    SCALARS   tag-set id u32, count u32, step i64, time i64 (ns since the epoch), float64 × count
    VALUE     step i64, time i64, meta length u32, reserved u32, meta, arrays

``meta`` is MessagePack: ``[kind, tag, info, [[dtype, shape], ...]]``; the bytes of the arrays
follow it in C order. ``meta`` and each array are padded with zeros to eight bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from struct import Struct, error as struct_error
from typing import Final, cast

import msgpack

from ._unpack import unpack
from .errors import LocalProtocolError, RemoteProtocolError
from .limits import (
    MAX_NAME_BYTES,
    MAX_RECORD_BYTES,
    MAX_SEQ,
    MAX_TAG_BYTES,
    MAX_TAGS_PER_RECORD,
)

SCALARS: Final = 1
VALUE: Final = 2

HEADER: Final = Struct("<IBBH")
SCALARS_HEAD: Final = Struct("<IBBHIIqq")
VALUE_HEAD: Final = Struct("<IBBHqqII")

DTYPE_SIZES: Final[Mapping[str, int]] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "float16": 2,
    "uint32": 4,
    "int32": 4,
    "float32": 4,
    "uint64": 8,
    "int64": 8,
    "float64": 8,
}
"""The dtypes that an array may have, by numpy's names, with their size in bytes."""

MAX_ARRAYS: Final = 64
MAX_NDIM: Final = 8


@lru_cache(maxsize=1024)
def scalars_struct(count: int) -> Struct:
    """The layout of a SCALARS record with `count` values."""
    return Struct(f"<IBBHIIqq{count}d")


@dataclass(frozen=True, slots=True)
class Scalars:
    """One row of numbers: `values[i]` belongs to the i-th tag of the tag set.

    Attributes:
        tag_set: id that the client gave to the tuple of tags.
        step: training step, a signed 64-bit integer.
        time_ns: wall time of the `emit`, in nanoseconds since the epoch.
        values: float64s, kept as they are (NaN and infinities too).
    """

    tag_set: int
    step: int
    time_ns: int
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Array:
    """The bytes of one array in C order, with numpy's name of its dtype and its shape."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview

    @property
    def nbytes(self) -> int:
        """Size in bytes that dtype and shape ask for."""
        return DTYPE_SIZES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Value:
    """Anything that is not a plain number: a histogram's data, an image, moments, text.

    Attributes:
        kind: the name of the value type (``"histogram"``), which sinks look up.
        tag: the tag under which it was emitted.
        step: training step.
        time_ns: wall time in nanoseconds since the epoch.
        info: small settings of the kind (a caption, a range): MessagePack types only.
        arrays: the bulk of it.
    """

    kind: str
    tag: str
    step: int
    time_ns: int
    info: Mapping[str, object] = field(default_factory=dict[str, object])
    arrays: Sequence[Array] = ()


def encode_scalars(record: Scalars) -> bytes:
    """The bytes of `record` (the client's hot path packs them in place instead).

    Raises:
        LocalProtocolError: it has no value or too many, or a number that does not fit its field.
    """
    count = len(record.values)
    if not 0 < count <= MAX_TAGS_PER_RECORD:
        raise LocalProtocolError(f"{count} scalars, a record has 1 to {MAX_TAGS_PER_RECORD}")
    layout = scalars_struct(count)
    head = (layout.size, SCALARS, 0, 0, record.tag_set, count, record.step, record.time_ns)
    try:
        return layout.pack(*head, *record.values)
    except struct_error as error:
        raise LocalProtocolError(f"cannot encode scalars: {error}") from error


def encode_value(record: Value) -> tuple[int, list[bytes | bytearray | memoryview]]:
    """The bytes of `record` as (total length, pieces to be laid one after the other).

    The arrays are not copied here: whoever stores the record copies them once.

    Raises:
        LocalProtocolError: no reader would take it: a name, a dtype, a shape or `info` is beyond
            the limits, an array's bytes are not as many as it says, or `info` cannot be said in
            MessagePack. Only the record's size is not looked at: where it goes decides on that.
    """
    try:
        specs = [[array.dtype, list(array.shape)] for array in record.arrays]
        meta = cast("bytes", msgpack.packb([record.kind, record.tag, dict(record.info), specs]))
        _check_meta(meta)
        pieces: list[bytes | bytearray | memoryview] = [b"", meta, _padding(len(meta))]
        length = VALUE_HEAD.size + _padded(len(meta))
        for array in record.arrays:
            pieces += [_whole(array), _padding(array.nbytes)]
            length += _padded(array.nbytes)
        # The header's length field has 32 bits; a longer record is refused by its size, later.
        pieces[0] = VALUE_HEAD.pack(
            length & 0xFFFFFFFF, VALUE, 0, 0, record.step, record.time_ns, len(meta), 0
        )
    except (RemoteProtocolError, TypeError, ValueError, OverflowError, struct_error) as error:
        raise LocalProtocolError(f"cannot encode {record.tag!a:.100}: {error}") from error
    return length, pieces


def walk(data: bytes | memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield (offset, length, kind) of each record in `data`.

    Raises:
        RemoteProtocolError: `data` is not a whole number of records of a known kind.
    """
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < HEADER.size:
            raise RemoteProtocolError("malformed", f"torn record header at byte {offset}")
        length, kind, _flags, _reserved = HEADER.unpack_from(data, offset)
        smallest = SCALARS_HEAD.size if kind == SCALARS else VALUE_HEAD.size
        if kind not in (SCALARS, VALUE):
            raise RemoteProtocolError("malformed", f"unknown record kind {kind} at byte {offset}")
        if length < smallest or length % 8 or length > end - offset:
            raise RemoteProtocolError(
                "malformed", f"record of {length} bytes at byte {offset} of {end}"
            )
        yield offset, length, kind
        offset += length


def decode_scalars(data: bytes | memoryview, offset: int = 0) -> Scalars:
    """Read the SCALARS record at `offset`.

    Raises:
        RemoteProtocolError: its length does not fit its count.
    """
    try:
        length, _kind, _flags, _reserved, tag_set, count, step, time_ns = SCALARS_HEAD.unpack_from(
            data, offset
        )
        if not 0 < count <= MAX_TAGS_PER_RECORD or length != SCALARS_HEAD.size + 8 * count:
            raise RemoteProtocolError("malformed", f"{count} scalars in {length} bytes")
        values = scalars_struct(count).unpack_from(data, offset)[8:]
    except struct_error as error:
        raise RemoteProtocolError("malformed", f"torn scalars record: {error}") from None
    return Scalars(tag_set, step, time_ns, cast("tuple[float, ...]", values))


def decode_value(data: bytes | memoryview) -> Value:
    """Read the VALUE record that fills `data`; its arrays are views of `data`.

    Raises:
        RemoteProtocolError: anything in it is not as the layout above says.
    """
    view = memoryview(data)
    if len(view) < VALUE_HEAD.size:
        raise RemoteProtocolError("malformed", "torn value record")
    length, kind, _flags, _reserved, step, time_ns, meta_bytes, _ = VALUE_HEAD.unpack_from(view)
    start = VALUE_HEAD.size + _padded(meta_bytes)
    if kind != VALUE or length != len(view) or start > length or length > MAX_RECORD_BYTES:
        raise RemoteProtocolError("malformed", f"value record of {length} bytes")
    meta = unpack(view[VALUE_HEAD.size : VALUE_HEAD.size + meta_bytes])
    name, tag, info, specs = _value_meta(meta)
    arrays: list[Array] = []
    for dtype, shape in specs:
        array = Array(dtype, shape, b"")
        end = start + array.nbytes
        if end > length:
            raise RemoteProtocolError("malformed", f"array {shape} of {dtype} is cut off")
        arrays.append(Array(dtype, shape, view[start:end]))
        start += _padded(array.nbytes)
    if start != length:
        raise RemoteProtocolError("malformed", f"{length - start} bytes after the last array")
    return Value(name, tag, step, time_ns, info, tuple(arrays))


def check_tag(tag: object) -> str:
    """Return `tag` if it can be one.

    Raises:
        RemoteProtocolError: it is no string, empty, longer than `MAX_TAG_BYTES`, or cannot be
            said in UTF-8 (it holds half of a surrogate pair).
    """
    if not isinstance(tag, str) or not tag:
        raise RemoteProtocolError("malformed", "a tag must be a non-empty string")
    try:
        size = len(tag) if tag.isascii() else len(tag.encode())
    except UnicodeEncodeError:
        raise RemoteProtocolError("malformed", f"a tag must be text, not {tag!a:.100}") from None
    if size > MAX_TAG_BYTES:
        raise RemoteProtocolError("too_large", f"a tag may have {MAX_TAG_BYTES} bytes")
    return tag


@lru_cache(maxsize=1024)
def _check_meta(meta: bytes) -> None:
    """See that a reader would take `meta`; values of one tag differ in nothing but their arrays."""
    _value_meta(unpack(meta))


def _value_meta(
    meta: object,
) -> tuple[str, str, dict[str, object], list[tuple[str, tuple[int, ...]]]]:
    if not isinstance(meta, list) or len(cast("list[object]", meta)) < 4:
        raise RemoteProtocolError("malformed", "value meta must be [kind, tag, info, arrays]")
    kind, tag, info, specs = cast("list[object]", meta)[:4]
    if not isinstance(kind, str) or not 0 < len(kind) <= 64:
        raise RemoteProtocolError("malformed", "a value's kind must be a short string")
    if not isinstance(info, dict) or not isinstance(specs, list):
        raise RemoteProtocolError("malformed", "value info must be a map, arrays a list")
    specs = cast("list[object]", specs)
    if len(specs) > MAX_ARRAYS:
        raise RemoteProtocolError("too_large", f"{len(specs)} arrays, at most {MAX_ARRAYS}")
    return kind, check_tag(tag), cast("dict[str, object]", info), [_array_spec(s) for s in specs]


def _array_spec(spec: object) -> tuple[str, tuple[int, ...]]:
    match spec:
        case [str() as dtype, [*shape]] if dtype in DTYPE_SIZES and len(shape) <= MAX_NDIM:
            dims = tuple(d for d in shape if type(d) is int and d >= 0)
            # An empty array may not be huge in its other dimensions: no array library takes that.
            if len(dims) == len(shape) and math.prod(d or 1 for d in dims) <= MAX_RECORD_BYTES:
                return dtype, dims
        case _:
            pass
    raise RemoteProtocolError("malformed", f"not an array's [dtype, shape]: {spec!r:.100}")


def _whole(array: Array) -> bytes | bytearray | memoryview:
    """The bytes of `array`, which are as many as its dtype and shape ask for."""
    if memoryview(array.data).nbytes != array.nbytes:
        raise ValueError(f"an array {array.shape} of {array.dtype} has {array.nbytes} bytes")
    return array.data


def _padded(size: int) -> int:
    return (size + 7) & ~7


def _padding(size: int) -> bytes:
    return bytes(-size % 8)


__all__ = [
    "DTYPE_SIZES",
    "HEADER",
    "MAX_NAME_BYTES",
    "MAX_SEQ",
    "SCALARS",
    "SCALARS_HEAD",
    "VALUE",
    "VALUE_HEAD",
    "Array",
    "Scalars",
    "Value",
    "check_tag",
    "decode_scalars",
    "decode_value",
    "encode_scalars",
    "encode_value",
    "scalars_struct",
    "walk",
]

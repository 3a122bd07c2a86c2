"""The archive's file: a run's numbers in float64, in columns, framed like an event file.

A file is a sequence of frames, each a TFRecord (see `event_file`): its length, a checksum of that,
the body, a checksum of the body. A body begins with four u32, kind, tag set, rows, tags; what
follows depends on the kind, little-endian::

    FILE    the first frame; tag set = version of the format, rows = tags = 0
            MessagePack: {"run": the run's name}
    TAGS    defines a tag set, once in a file, before its first block; rows = 0
            u64: where the TAGS frame before it begins, 0 for none; MessagePack: the tags, a list
    BLOCK   numbers that were emitted under one tag set, in the order of their emission
            int64 steps (rows,); int64 times in ns (rows,); float64 values (rows, tags)

Tag sets are numbered from 0 in each file. The chain of TAGS frames lets a writer that goes on in a
file know them again without reading its blocks. A kind that a reader does not know, it skips. The
bytes of a block depend on nothing but the block and the tag sets before it: written again after a
crash they are the same. A block alone takes 56 + 8 k bytes a row of k tags, among many 16 + 8 k.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, Final, cast

import google_crc32c
import msgpack
import numpy as np

from ..rows.points import MixedBlock, ScalarBlock
from .event_file import CRC, HEAD, masked, record, record_head
from .sheet import Sheet, places_of

FOLDER: Final = "scalars"
"""The folder in a log directory that holds one folder for each run."""

VERSION: Final = 1

FILE: Final = 1
TAGS: Final = 2
BLOCK: Final = 3

BODY_HEAD: Final = Struct("<IIII")
"""Kind, tag set, rows, tags."""

MAX_BODY_BYTES: Final = 2 << 20
"""A length beyond this is damage: blocks are cut at `_BLOCK_BYTES`, tags are fewer than that."""

_TAG_SET_AT: Final = 4
"""Where in it the tag set is."""

FRAME_BYTES: Final = HEAD.size + CRC.size
"""What a frame adds to its body."""

_BLOCK_BYTES: Final = 1 << 20
"""A block's columns have at most so many bytes, so that a reader's memory is bounded."""

_PREVIOUS: Final = Struct("<Q")
_NAME: Final = re.compile(r"scalars\.(\d{6,18})\.[^/\0]+")


class FormatError(ValueError):
    """The bytes of a frame are whole, and yet not what this version understands."""


def file_name(number: int, host: str, pid: int) -> str:
    """The name of a run's file; `number` orders them, the rest keeps two writers apart."""
    return f"scalars.{number:06d}.{host.replace('/', '_')}.{pid}"


def number_of(name: str) -> int:
    """The number in a file's name, -1 for any other file."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else -1


# --- writing -----------------------------------------------------------------------------------


def file_frame(run: str) -> bytes:
    """The frame that a file of the run called `run` begins with."""
    return record(BODY_HEAD.pack(FILE, VERSION, 0, 0) + _packed({"run": run}))


def tags_frame(tag_set: int, tags: Sequence[str], previous: int) -> bytes:
    """The definition of `tag_set`; `previous` is where the one before it begins."""
    head = BODY_HEAD.pack(TAGS, tag_set, 0, len(tags)) + _PREVIOUS.pack(previous)
    return record(head + _packed(list(tags)))


def block_frames(tag_set: int, block: ScalarBlock) -> Iterator[bytes]:
    """Yield the pieces of the frames that hold `block`."""
    width = len(block.tags)
    height = max(1, _BLOCK_BYTES // (16 + 8 * width))
    for top in range(0, len(block.steps), height):
        rows = slice(top, top + height)
        steps = block.steps[rows]
        body = b"".join(
            (
                BODY_HEAD.pack(BLOCK, tag_set, len(steps), width),
                steps.tobytes(),
                block.times_ns[rows].tobytes(),
                block.values[rows].tobytes(),
            )
        )
        yield record_head(len(body))
        yield body
        yield CRC.pack(masked(google_crc32c.value(body)))


def mixed_frames(tag_sets: Sequence[int], block: MixedBlock) -> bytearray:
    """The frames of `block`, whose tag sets have these numbers: one row in each."""
    counts, numbers = block.counts, np.array(tag_sets, np.int64)[block.which]
    widths, kind = np.unique(counts, return_inverse=True)
    rests = [2 * 8 + 8 * width for width in widths.tolist()]
    templates = [
        record_head(BODY_HEAD.size + rest)
        + BODY_HEAD.pack(BLOCK, 0, 1, width)
        + bytes(rest + CRC.size)
        for width, rest in zip(widths.tolist(), rests, strict=True)
    ]
    sheet = Sheet(templates, kind)
    sheet.put("<u4", sheet.starts + HEAD.size + _TAG_SET_AT, numbers)
    at = sheet.starts + HEAD.size + BODY_HEAD.size
    sheet.put("<i8", at, block.steps)
    sheet.put("<i8", at + 8, block.times_ns)
    tables = [np.arange(width) * 8 for width in widths.tolist()]
    sheet.put("<f8", places_of(at + 16, tables, kind), block.values)
    return sheet.seal()


# --- reading -----------------------------------------------------------------------------------


def run_of(body: bytes) -> str:
    """The name of the run that a file is of, from its first frame.

    Raises:
        FormatError: it is another kind of file, or of a version to come.
    """
    kind, version, _, _ = head_of(body)
    if kind != FILE:
        raise FormatError("it does not begin as an archive of scalars does")
    if version != VERSION:
        raise FormatError(f"it has version {version}; this program reads version {VERSION}")
    found = _unpacked(body[BODY_HEAD.size :])
    name = found.get("run") if isinstance(found, dict) else None
    if not isinstance(name, str):
        raise FormatError("its first frame does not name a run")
    return name


def tags_of(body: bytes) -> tuple[int, tuple[str, ...], int]:
    """What a TAGS frame defines: the tag set, its tags, and where the definition before it is.

    Raises:
        FormatError: it does not define tags.
    """
    kind, tag_set, _, count = head_of(body)
    if kind != TAGS or len(body) < BODY_HEAD.size + _PREVIOUS.size:
        raise FormatError("no definition of tags")
    (previous,) = _PREVIOUS.unpack_from(body, BODY_HEAD.size)
    tags = _unpacked(body[BODY_HEAD.size + _PREVIOUS.size :])
    if not isinstance(tags, list) or len(tags) != count:
        raise FormatError(f"tag set {tag_set} is not a list of {count} tags")
    if not all(isinstance(tag, str) for tag in tags):
        raise FormatError(f"tag set {tag_set} holds something else than tags")
    return tag_set, tuple(cast("list[str]", tags)), previous


def head_of(body: bytes) -> tuple[int, int, int, int]:
    """Kind, tag set, rows and tags of a body.

    Raises:
        FormatError: it is shorter than that.
    """
    if len(body) < BODY_HEAD.size:
        raise FormatError(f"a frame of {len(body)} bytes")
    return cast("tuple[int, int, int, int]", BODY_HEAD.unpack_from(body))


def _packed(fields: object) -> bytes:
    return cast("bytes", msgpack.packb(fields, unicode_errors="surrogatepass"))


def _unpacked(data: bytes) -> Any:
    try:
        return msgpack.unpackb(data, unicode_errors="surrogatepass")
    except (ValueError, msgpack.UnpackException) as error:
        raise FormatError(f"no MessagePack: {error}") from None

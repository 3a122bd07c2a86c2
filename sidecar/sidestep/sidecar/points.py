"""Journal rows to what sinks and derivers work on: blocks of numbers, and single values.

Consecutive SCALARS records of one tag set are the rule (a training loop emits the same dict at
each step), and each is equally long: such a stretch is looked at as one numpy table, without
touching a record in Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

from sidestep.proto import RemoteProtocolError, Value
from sidestep.proto.limits import MAX_TAGS_PER_RECORD
from sidestep.proto.records import SCALARS, SCALARS_HEAD, VALUE, VALUE_HEAD, decode_value

_HEAD: Final = Struct("<IBBHII")  # what the records of one stretch have in common
_STEP: Final = Struct("<q")
_HEAD_WORDS: Final = SCALARS_HEAD.size // 8  # header; tag set and count; step; time


@dataclass(frozen=True, slots=True)
class ScalarBlock:
    """Rows of numbers that were emitted under the same tags, in the order of their emission.

    Attributes:
        tags: the k tags.
        steps: int64, shape (n,).
        times_ns: int64, shape (n,), wall time in nanoseconds since the epoch.
        values: float64, shape (n, k). A view of the journal's bytes: copy before writing.
    """

    tags: tuple[str, ...]
    steps: npt.NDArray[np.int64]
    times_ns: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


Points = ScalarBlock | Value


@overload
def wall_times_s(times_ns: int) -> float: ...
@overload
def wall_times_s(times_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]: ...
def wall_times_s(times_ns: Any) -> Any:
    """Nanoseconds since the epoch as float seconds, of one time or of an array of them.

    The whole seconds are split off first: ``times_ns / 1e9`` would round to 256 ns before it
    divides, and 1700000000.25 would come out as 1700000000.2499998.
    """
    return times_ns // 1_000_000_000 + times_ns % 1_000_000_000 / 1e9


def split(data: bytes | memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Yield (offset, record bytes, records, tag set) of each stretch of like records.

    A VALUE record is a stretch of its own, with tag set -1.

    Raises:
        RemoteProtocolError: `data` is not a whole number of valid records.
    """
    end = len(data)
    if end % 8:
        raise RemoteProtocolError("malformed", f"{end} bytes of records, not a multiple of 8")
    words = np.frombuffer(data, dtype="<u8")
    at = 0
    while at < end:
        if end - at < SCALARS_HEAD.size:
            raise RemoteProtocolError("malformed", f"torn record header at byte {at}")
        length, kind, _, _, tag_set, count = _HEAD.unpack_from(data, at)
        if kind == VALUE and VALUE_HEAD.size <= length <= end - at and length % 8 == 0:
            yield at, length, 1, -1
            at += length
            continue
        if kind != SCALARS:
            raise RemoteProtocolError("malformed", f"record of kind {kind} at byte {at}")
        fits = 0 < count <= MAX_TAGS_PER_RECORD and length == SCALARS_HEAD.size + 8 * count
        if not fits or length > end - at:
            raise RemoteProtocolError("malformed", f"{count} scalars in {length} bytes")
        after = at + length
        # Where records are mixed, each is alone: two slices say so, numpy would take 10 µs to.
        alike = data[at : at + _HEAD.size] == data[after : after + _HEAD.size]
        n = _stretch(words, at // 8, length // 8) if alike else 1
        yield at, length, n, tag_set
        at += n * length


def _stretch(words: npt.NDArray[np.uint64], first: int, width: int) -> int:
    """How many records from word `first` on have the same header, tag set and count."""
    most = (len(words) - first) // width
    table = words[first : first + most * width].reshape(most, width)
    # A short look ahead first: after a short stretch the full comparison would be wasted.
    if most > 8:
        same = _same(table[:8])
        if not same.all():
            return int(np.argmin(same))
    same = _same(table)
    return most if same.all() else int(np.argmin(same))


def _same(table: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    same: npt.NDArray[np.bool_] = table[:, 0] == table[0, 0]
    same &= table[:, 1] == table[0, 1]
    return same


def read_points(
    data: bytes | memoryview, tag_sets: Mapping[int, tuple[str, ...]]
) -> Iterator[Points]:
    """The points in one journal row.

    Args:
        data: the row's records.
        tag_sets: the client's tag sets by their ids.

    Raises:
        RemoteProtocolError: the row is damaged, or names a tag set that is not defined.
    """
    longs: npt.NDArray[np.int64] = np.frombuffer(data, dtype="<i8", count=len(data) // 8)
    doubles = longs.view(np.float64)
    for at, length, n, tag_set in split(data):
        if tag_set < 0:
            yield decode_value(memoryview(data)[at : at + length])
            continue
        tags = tag_sets.get(tag_set)
        width = length // 8
        count = width - _HEAD_WORDS
        if tags is None or len(tags) != count:
            raise RemoteProtocolError("malformed", f"{count} scalars of tag set {tag_set}")
        first, last = at // 8, at // 8 + n * width
        table = longs[first:last].reshape(n, width)
        values = doubles[first:last].reshape(n, width)[:, _HEAD_WORDS:]
        yield ScalarBlock(tags, table[:, 2], table[:, 3], values)


def check_rows(
    data: bytes | memoryview,
    tag_counts: Mapping[int, int],
    skip: int,
    records: int,
    stretches: list[tuple[int, int, int, int]] | None = None,
) -> tuple[bytes | memoryview, int, frozenset[str]]:
    """See that `data` may be journalled.

    Args:
        data: a batch's records.
        tag_counts: the number of tags of each of the client's tag sets.
        skip: how many records at its beginning are journalled already.
        records: how many must follow them.
        stretches: takes up (tag set, records, first step, furthest step) of each stretch of like
            records that follow those; the tag set of a value is -1.

    Returns:
        The bytes without the skipped records, the step of the last one, and the kinds of the
        values among them.

    Raises:
        RemoteProtocolError: the records are malformed, too few or too many, or name a tag set
            that is not defined.
    """
    total = 0
    start: int | None = 0 if skip == 0 else None
    last = 0
    step_at = 16
    longs: npt.NDArray[np.int64] = np.frombuffer(data, "<i8", len(data) // 8)
    kinds: set[str] = set()
    for at, length, n, tag_set in split(data):
        if tag_set < 0:
            kind = decode_value(memoryview(data)[at : at + length]).kind
            if total >= skip:
                kinds.add(kind)
        elif tag_counts.get(tag_set) != length // 8 - _HEAD_WORDS:
            raise RemoteProtocolError("undefined", f"scalars of undefined tag set {tag_set}")
        if start is None and total + n > skip:
            start = at + (skip - total) * length
        step_at = 16 if tag_set >= 0 else 8
        if stretches is not None and total + n > skip:
            if n == 1:  # the rule where records are mixed: numpy takes its time for one number
                (step,) = _STEP.unpack_from(data, at + step_at)
                stretches.append((tag_set, 1, step, step))
            else:
                new = min(n, total + n - skip)
                steps = longs[(at + step_at) // 8 :: length // 8][n - new : n]
                stretches.append((tag_set, new, int(steps[0]), int(steps.max())))
        total += n
        last = at + (n - 1) * length
    if total != skip + records or start is None:
        raise RemoteProtocolError(
            "malformed", f"{total} records in a batch that says {skip + records}"
        )
    kept = data if start == 0 else memoryview(data)[start:]
    return kept, int(longs[(last + step_at) // 8]), frozenset(kinds)

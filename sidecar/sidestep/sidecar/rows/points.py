"""Journal rows to what sinks and derivers work on: blocks of numbers, and single values.

Consecutive SCALARS records of one tag set are the rule (a training loop emits the same dict at
each step), and each is equally long: such a stretch is looked at as one numpy table, without
touching a record in Python. Where a loop emits several dicts in turn, `mixed` helps.
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
from sidestep.proto.tag_sets import ReducedTags

from . import mixed
from .parted import without

_HEAD: Final = Struct("<IBBHII")  # what the records of one stretch have in common
_STEP: Final = Struct("<q")
_HEAD_WORDS: Final = SCALARS_HEAD.size // 8  # header; tag set and count; step; time

VALUES: Final = -1
"""What `split` says for the tag set of a VALUE."""

MIXED: Final = -2
"""What `split` says for the tag set of records of several."""


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


@dataclass(frozen=True, slots=True)
class MixedBlock:
    """Rows of numbers of several tag sets in turn, in the order of their emission.

    Attributes:
        tag_sets: the m different tuples of tags.
        which: int64, shape (n,), the tag set of each row.
        steps: int64, shape (n,).
        times_ns: int64, shape (n,), wall time in nanoseconds since the epoch.
        values: float64, the numbers of all rows, one row after the other.
    """

    tag_sets: tuple[tuple[str, ...], ...]
    which: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    times_ns: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """How many numbers each row has, int64, shape (n,)."""
        return np.fromiter(map(len, self.tag_sets), np.int64, len(self.tag_sets))[self.which]

    def alone(self) -> Iterator[ScalarBlock]:
        """Yield each row as a block of its own."""
        first = 0
        for row, which in enumerate(self.which.tolist()):
            tags = self.tag_sets[which]
            values = self.values[first : first + len(tags)].reshape(1, -1)
            first += len(tags)
            rows = slice(row, row + 1)
            yield ScalarBlock(tags, self.steps[rows], self.times_ns[rows], values)


Points = ScalarBlock | MixedBlock | Value


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


def split(data: bytes | memoryview) -> Iterator[tuple[int, int, int, int, mixed.Places | None]]:
    """Yield (offset, record bytes, records, tag set, None) of each stretch of like records.

    A VALUE record is a stretch of its own, with tag set `VALUES`. Many records of several tag
    sets in turn are one stretch, with tag set `MIXED`, the bytes of all of them, and their places.

    Raises:
        RemoteProtocolError: `data` is not a whole number of valid records.
    """
    end = len(data)
    if end % 8:
        raise RemoteProtocolError("malformed", f"{end} bytes of records, not a multiple of 8")
    words = np.frombuffer(data, dtype="<u8")
    at = alone_until = 0
    while at < end:
        if end - at < SCALARS_HEAD.size:
            raise RemoteProtocolError("malformed", f"torn record header at byte {at}")
        length, kind, _, _, tag_set, count = _HEAD.unpack_from(data, at)
        if kind == VALUE and VALUE_HEAD.size <= length <= end - at and length % 8 == 0:
            yield at, length, 1, VALUES, None
            at += length
            continue
        if kind != SCALARS:
            raise RemoteProtocolError("malformed", f"record of kind {kind} at byte {at}")
        fits = 0 < count <= MAX_TAGS_PER_RECORD and length == SCALARS_HEAD.size + 8 * count
        if not fits or length > end - at:
            raise RemoteProtocolError("malformed", f"{count} scalars in {length} bytes")
        after = at + length
        # Where records are mixed, each is alone: two slices say so, numpy would take 10 µs to.
        if data[at : at + _HEAD.size] == data[after : after + _HEAD.size]:
            n = _stretch(words, at // 8, length // 8)
            yield at, length, n, tag_set, None
            at += n * length
            continue
        places = None
        if at >= alone_until:
            places, alone_until = mixed.find(data, at)
        if places is not None:
            yield at, alone_until - at, len(places), MIXED, places
            at = alone_until
        else:
            yield at, length, 1, tag_set, None
            at = after


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
    data: bytes | memoryview,
    tag_sets: Mapping[int, tuple[str, ...]],
    *,
    any_order: bool = False,
    reduced: bool = False,
) -> Iterator[Points]:
    """The points in one journal row.

    Numbers that are one rank's part of a reduction are nobody's but the derivers'.

    Args:
        data: the row's records.
        tag_sets: the client's tag sets by their ids.
        any_order: whether numbers of different tags may change places, for larger blocks; those
            of one tag never do, nor does a number with a value. Where that does not help, rows of
            many tag sets in turn are a `MixedBlock`, which there is only then.
        reduced: of the numbers, those that are to be reduced over ranks, instead of the others;
            the tags of their blocks are `ReducedTags`.

    Raises:
        RemoteProtocolError: the row is damaged, or names a tag set that is not defined.
    """
    longs: npt.NDArray[np.int64] = np.frombuffer(data, dtype="<i8", count=len(data) // 8)
    for at, length, n, tag_set, places in split(data):
        if tag_set == VALUES:
            yield decode_value(memoryview(data)[at : at + length])
        elif places is None:
            if (type(tag_sets.get(tag_set)) is ReducedTags) is not reduced:
                continue
            first, last = at // 8, (at + n * length) // 8
            yield _block(tag_set, longs[first:last].reshape(n, length // 8), tag_sets)
        elif (rest := without(data, places, tag_sets, reduced=not reduced)) is not None:
            yield from read_points(rest, tag_sets, any_order=any_order, reduced=reduced)
        elif any_order and mixed.sortable(data, places, tag_sets):
            for one, table in mixed.grouped(data, places):
                yield _block(one, table, tag_sets)
        elif any_order:
            yield _mixed(data, places, tag_sets)
        else:
            ids, counts = mixed.tag_sets_of(data, places)
            firsts = places // 2
            lasts = firsts + counts + _HEAD_WORDS
            for one, first, last in zip(ids.tolist(), firsts.tolist(), lasts.tolist(), strict=True):
                yield _block(one, longs[first:last].reshape(1, -1), tag_sets)


def _block(
    tag_set: int, table: npt.NDArray[np.int64], tag_sets: Mapping[int, tuple[str, ...]]
) -> ScalarBlock:
    """Records of one tag set as a block; `table` has shape (records, words of one)."""
    tags = tag_sets.get(tag_set)
    count = table.shape[1] - _HEAD_WORDS
    if tags is None or len(tags) != count:
        raise RemoteProtocolError("malformed", f"{count} scalars of tag set {tag_set}")
    values = table.view(np.float64)[:, _HEAD_WORDS:]
    return ScalarBlock(tags, table[:, 2], table[:, 3], values)


def _mixed(
    data: bytes | memoryview, places: mixed.Places, tag_sets: Mapping[int, tuple[str, ...]]
) -> MixedBlock:
    """Records of several tag sets in turn, as they are."""
    ids, counts = mixed.tag_sets_of(data, places)
    known, which = np.unique(ids, return_inverse=True)
    tuples = tuple(tag_sets.get(number, ()) for number in known.tolist())
    widths = np.fromiter(map(len, tuples), np.int64, len(tuples))
    wrong = widths[which] != counts
    if wrong.any():
        row = int(np.argmax(wrong))
        raise RemoteProtocolError("malformed", f"{counts[row]} scalars of tag set {ids[row]}")
    longs: npt.NDArray[np.int64] = np.frombuffer(data, "<i8", len(data) // 8)
    rows = places // 2
    # The records lie one behind the other: what is not a head is a number.
    first, last = int(rows[0]), int(rows[-1] + _HEAD_WORDS + counts[-1])
    is_number = np.ones(last - first, np.bool_)
    is_number[(rows[:, None] - first + np.arange(_HEAD_WORDS)).ravel()] = False
    values = longs[first:last][is_number].view(np.float64)
    return MixedBlock(tuples, which, longs[rows + 2], longs[rows + 3], values)


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
        stretches: takes up (tag set, records, first step, furthest step) of the records that
            follow those, in the order of the tag sets' first ones; the tag set of a value is -1.

    Returns:
        The bytes without the skipped records, the step of the last one, and the kinds of the
        values among them.

    Raises:
        RemoteProtocolError: the records are malformed, too few or too many, or name a tag set
            that is not defined.
    """
    total = 0
    start: int | None = 0 if skip == 0 else None
    last_step_at = 0
    longs: npt.NDArray[np.int64] = np.frombuffer(data, "<i8", len(data) // 8)
    kinds: set[str] = set()
    for at, length, n, tag_set, places in split(data):
        known = max(0, skip - total)  # of this stretch
        total += n
        if places is not None:
            ids, counts = mixed.tag_sets_of(data, places)
            _check_counts(ids, counts, tag_counts)
            if start is None and known < n:
                start = 4 * int(places[known])
            last_step_at = int(places[-1]) // 2 + 2
            if stretches is not None and known < n:
                stretches += mixed.reach(data, places[known:])
            continue
        if tag_set == VALUES:
            kind = decode_value(memoryview(data)[at : at + length]).kind
            if not known:
                kinds.add(kind)
        elif tag_counts.get(tag_set) != length // 8 - _HEAD_WORDS:
            raise _undefined(tag_set)
        if start is None and known < n:
            start = at + known * length
        step_at = (at + (16 if tag_set >= 0 else 8)) // 8
        last_step_at = step_at + (n - 1) * (length // 8)
        if stretches is not None and known < n:
            if n == 1:  # the rule where records are few: numpy takes its time for one number
                (step,) = _STEP.unpack_from(data, 8 * step_at)
                stretches.append((tag_set, 1, step, step))
            else:
                steps = longs[step_at :: length // 8][known:n]
                stretches.append((tag_set, n - known, int(steps[0]), int(steps.max())))
    if total != skip + records or start is None:
        raise RemoteProtocolError(
            "malformed", f"{total} records in a batch that says {skip + records}"
        )
    kept = data if start == 0 else memoryview(data)[start:]
    return kept, int(longs[last_step_at]), frozenset(kinds)


def _check_counts(ids: mixed.Places, counts: mixed.Places, tag_counts: Mapping[int, int]) -> None:
    """See that each record has as many numbers as its tag set has tags."""
    known, index = np.unique(ids, return_inverse=True)
    expected = np.array([tag_counts.get(one, -1) for one in known.tolist()], np.int64)
    wrong = expected[index] != counts
    if wrong.any():
        raise _undefined(int(ids[np.argmax(wrong)]))


def _undefined(tag_set: int) -> RemoteProtocolError:
    return RemoteProtocolError("undefined", f"scalars of undefined tag set {tag_set}")

"""Records of several tag sets in turn: found in one walk, and sorted into one table a tag set.

A trainer that emits two dicts a step sends records that are never like the one before them. One by
one each would cost ten times what it does in a table: so the walk looks at two words of a record,
and numpy at everything else, of all records at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from sidestep.proto import RemoteProtocolError
from sidestep.proto.limits import MAX_TAGS_PER_RECORD
from sidestep.proto.records import SCALARS, SCALARS_HEAD

_FEWEST: Final = 16
"""Fewer records than this are looked at one by one: numpy takes 10 µs before it begins. So many
that are alike are a stretch of their own."""

_FEW_IN_A_GROUP: Final = 4
"""With fewer records a tag set on average, tables are dearer than the records one by one."""

_STEP: Final = 2  # within a record, in words of eight bytes

# Within a record, in words of four bytes: its length, kind and flags, tag set, count.
_KIND, _TAG_SET, _COUNT = 1, 2, 3
_HEAD_BYTES: Final = SCALARS_HEAD.size
_LEAST_WORDS: Final = (_HEAD_BYTES + 8) // 4

Places = npt.NDArray[np.int64]
"""Where records begin, in words of four bytes."""


def find(data: bytes | memoryview, at: int) -> tuple[Places | None, int]:
    """The valid SCALARS records from byte `at` on, up to where many are alike, or none follows.

    Args:
        data: a whole number of words of eight bytes.
        at: where a record begins.

    Returns:
        Their places, None where they are too few to pay; and the byte after the last one.
    """
    words = memoryview(data).cast("B").cast("I")
    table = np.frombuffer(data, "<u4")
    regular, done = _equally_long(table[at // 4 :])
    regular += at // 4
    end = len(words)
    place = int(regular[-1]) + words[at // 4] // 4 if len(regular) else at // 4
    found: list[int] = []
    newest, width, alike = -1, 0, 0
    # Nothing is known of a record here but that it begins: its length may be any number.
    while not done and end - place >= _LEAST_WORDS and words[place + _KIND] & 0xFF == SCALARS:
        length = words[place] // 4
        if length < _LEAST_WORDS or length > end - place:
            break
        tag_set = words[place + _TAG_SET]
        alike = alike + 1 if tag_set == newest and length == width else 1
        newest, width = tag_set, length
        if alike == _FEWEST:
            del found[1 - alike :]
            place -= (alike - 1) * length
            break
        found.append(place)
        place += length
    places = np.concatenate([regular, np.array(found, np.int64)])
    lengths, counts = table[places], table[places + _COUNT]
    wrong = (lengths != _HEAD_BYTES + 8 * counts.astype(np.int64)) | (counts > MAX_TAGS_PER_RECORD)
    if wrong.any():
        place = int(places[np.argmax(wrong)])
        places = places[: np.argmax(wrong)]
    return (places if len(places) >= _FEWEST else None), 4 * place


def _equally_long(table: npt.NDArray[np.uint32]) -> tuple[Places, bool]:
    """The records that are as long as the first one, found at once; whether many alike follow."""
    none = np.zeros(0, np.int64)
    width = int(table[0]) // 4
    most = len(table) // width if width >= _LEAST_WORDS else 0
    if most < _FEWEST:
        return none, False
    heads = table[: most * width].reshape(most, width)[:, : _TAG_SET + 1]
    same = (heads[:, 0] == heads[0, 0]) & (heads[:, _KIND] & 0xFF == SCALARS)
    count = most if same.all() else int(np.argmin(same))
    if count < _FEWEST:
        return none, False
    edges = np.flatnonzero(np.diff(heads[:count, _TAG_SET])) + 1
    starts = np.concatenate([none, [0], edges])
    alike = np.diff(starts, append=count) >= _FEWEST
    done = bool(alike.any())
    return np.arange(int(starts[np.argmax(alike)]) if done else count) * width, done


def tag_sets_of(data: bytes | memoryview, places: Places) -> tuple[Places, Places]:
    """The tag set and the count of each record."""
    table = np.frombuffer(data, "<u4")
    return table[places + _TAG_SET].astype(np.int64), table[places + _COUNT].astype(np.int64)


def grouped(
    data: bytes | memoryview, places: Places
) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yield each tag set, in the order of their first records, with its records as a table.

    The table has shape (records, words of eight bytes in one), in the order of the records.

    Raises:
        RemoteProtocolError: two records of one tag set are not equally long.
    """
    tag_sets, counts = tag_sets_of(data, places)
    known, first, order, starts = _sorted(tag_sets)
    sizes = counts[order]
    if (sizes != np.repeat(sizes[starts], np.diff(starts, append=len(order)))).any():
        raise RemoteProtocolError("malformed", "scalars of one tag set in several lengths")
    longs: npt.NDArray[np.int64] = np.frombuffer(data, "<i8", len(data) // 8)
    rows = places[order] // 2
    ends = [*starts[1:].tolist(), len(order)]
    groups = list(zip(known.tolist(), starts.tolist(), ends, strict=True))
    # Equally long ones are all brought together at once.
    alike = bool((sizes == sizes[0]).all())
    whole = longs[rows[:, None] + np.arange(_words(int(sizes[0])))] if alike else None
    for index in np.argsort(first).tolist():
        tag_set, start, end = groups[index]
        if whole is not None:
            yield tag_set, whole[start:end]
        else:
            yield tag_set, longs[rows[start:end, None] + np.arange(_words(int(sizes[start])))]


def reach(data: bytes | memoryview, places: Places) -> Iterator[tuple[int, int, int, int]]:
    """Yield (tag set, records, first step, furthest step) of each, in the order of their firsts."""
    known, first, order, starts = _sorted(tag_sets_of(data, places)[0])
    longs: npt.NDArray[np.int64] = np.frombuffer(data, "<i8", len(data) // 8)
    steps = longs[places // 2 + _STEP]
    furthest = np.maximum.reduceat(steps[order], starts)
    counts = np.diff(starts, append=len(order))
    columns = (known, counts, steps[first], furthest)
    ordered = [column[np.argsort(first)].tolist() for column in columns]
    yield from zip(*ordered, strict=True)


def _sorted(tag_sets: Places) -> tuple[Places, Places, Places, Places]:
    """The tag sets, where each comes first, the records sorted by them, where each begins there."""
    known, first, group = np.unique(tag_sets, return_index=True, return_inverse=True)
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    return known, first, order, np.cumsum(counts) - counts


def _words(count: int) -> int:
    return count + _HEAD_BYTES // 8


def sortable(
    data: bytes | memoryview, places: Places, tag_sets: Mapping[int, tuple[str, ...]]
) -> bool:
    """Whether sorting pays, and each tag is in one tag set alone, so that its order is kept."""
    # With an index asked for, numpy does not load its masked arrays (2 MB).
    ids = np.unique(tag_sets_of(data, places)[0], return_index=True)[0].tolist()
    if len(ids) * _FEW_IN_A_GROUP > len(places):
        return False
    return _disjoint(tuple(tag_sets.get(number, ()) for number in ids))


@lru_cache(maxsize=64)
def _disjoint(tag_sets: tuple[tuple[str, ...], ...]) -> bool:
    return sum(map(len, tag_sets)) == len(set().union(*tag_sets))

"""Finds in a batch that cannot be journalled whole the records that are the reason.

The slow way, for what `points.check_rows` has refused: record by record. As long as the lengths of
the records can be trusted, one that is malformed harms none of its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sidestep.proto import RemoteProtocolError
from sidestep.proto.limits import MAX_TAGS_PER_RECORD
from sidestep.proto.records import HEADER, SCALARS, SCALARS_HEAD, decode_value


@dataclass(frozen=True, slots=True)
class Fault:
    """The first records in a row that cannot be taken.

    Attributes:
        index: how many good ones come before them.
        count: how many they are.
        start: where they begin, in bytes.
        end: where they end.
        error: what is wrong with the first of them.
    """

    index: int
    count: int
    start: int
    end: int
    error: RemoteProtocolError


def first_fault(
    data: bytes | memoryview, tag_counts: Mapping[int, int], skip: int, records: int
) -> Fault:
    """The first fault of a batch that has one.

    Args:
        data: the batch's records.
        tag_counts: the number of tags of each of the client's tag sets.
        skip: how many records at its beginning are journalled already.
        records: how many must follow them.
    """
    view = memoryview(data)
    most = skip + records
    places, broken = _places(view, most)
    if broken is None and (len(places) != most or (places and places[-1][1] != len(view))):
        # Which of them has which number, nobody can say.
        told = RemoteProtocolError("malformed", f"a batch that says {most} records has others")
        return Fault(0, records, 0, len(view), told)
    first: int | None = None
    why: RemoteProtocolError | None = None
    for number, (start, end) in enumerate(places[skip:], skip):
        error = _error(view[start:end], tag_counts)
        if why is not None and (error is None or error.code != why.code):
            break
        if why is None and error is not None:
            first, why = number, error
    else:
        number = len(places)
        if broken is not None and (why is None or why.code == broken.code):
            # Where the next one begins, nobody can say: none behind it can be taken.
            number = most
            first, why = (max(len(places), skip), broken) if why is None else (first, why)
    if first is None or why is None:  # `check_rows` has seen what is not seen here
        why = RemoteProtocolError("malformed", "a batch that cannot be journalled")
        return Fault(0, records, 0, len(view), why)
    start = places[first][0] if first < len(places) else (places[-1][1] if places else 0)
    end = len(view) if number == most else places[number - 1][1]
    return Fault(first - skip, number - first, start, end, why)


def _places(
    view: memoryview, most: int
) -> tuple[list[tuple[int, int]], RemoteProtocolError | None]:
    """Where up to `most` records begin and end, as far as their lengths can be true."""
    places: list[tuple[int, int]] = []
    at = 0
    while at < len(view) and len(places) < most:
        length = HEADER.unpack_from(view, at)[0] if len(view) - at >= HEADER.size else 0
        if length < HEADER.size or length % 8 or length > len(view) - at:
            return places, RemoteProtocolError(
                "malformed", f"a record of {length} bytes at byte {at} of {len(view)}"
            )
        places.append((at, at + length))
        at += length
    return places, None


def _error(record: memoryview, tag_counts: Mapping[int, int]) -> RemoteProtocolError | None:
    """Why a record of which the length is true cannot be taken."""
    kind = HEADER.unpack_from(record)[1]
    if kind == SCALARS and len(record) >= SCALARS_HEAD.size:
        _, _, _, _, tag_set, count, _, _ = SCALARS_HEAD.unpack_from(record)
        fits = 0 < count <= MAX_TAGS_PER_RECORD
        if not fits or len(record) != SCALARS_HEAD.size + 8 * count:
            return RemoteProtocolError("malformed", f"{count} scalars in {len(record)} bytes")
        if tag_counts.get(tag_set) != count:
            return RemoteProtocolError("undefined", f"scalars of undefined tag set {tag_set}")
        return None
    try:
        decode_value(record)
    except RemoteProtocolError as error:
        return error
    return None

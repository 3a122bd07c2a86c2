"""What goes out at once and is acknowledged as a whole: a batch, all parts of a record, a gap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from sidestep.proto import Batch, Gap, Message, Part, RemoteProtocolError, Tags
from sidestep.proto.limits import MAX_DATA_BYTES, MAX_SMALL_RECORD_BYTES
from sidestep.proto.records import HEADER, walk
from sidestep.proto.tag_sets import definitions


@dataclass(frozen=True, slots=True)
class Unit:
    """Messages that stand for the records `first` to `last`, of so many bytes."""

    first: int
    last: int
    nbytes: int
    messages: tuple[Message, ...]


def gap(first: int, last: int, reason: str) -> Unit:
    """Records that will never come."""
    return Unit(first, last, 0, (Gap(first, last, reason),))


def units_of(first: int, records: int, data: bytes | memoryview) -> Iterator[Unit]:
    """The units of records that lie one after the other, from number `first` on.

    Raises:
        RemoteProtocolError: they cannot be told apart, or there are not so many.
    """
    small = len(data) <= (MAX_SMALL_RECORD_BYTES if records == 1 else MAX_DATA_BYTES)
    if small:
        last = first + records - 1
        yield Unit(first, last, len(data), (Batch(first, last, data),))
        return
    view, seq, start, at = memoryview(data), first, 0, 0
    units: list[Unit] = []  # all or none: what cannot be read must not be half sent
    for at, length, _ in walk(view):
        large = length > MAX_SMALL_RECORD_BYTES
        if at > start and (large or at + length - start > MAX_DATA_BYTES):
            units.append(_batch(first, seq, view[start:at]))
            first, start = seq, at
        seq += 1
        if large:
            units.append(_parts(seq - 1, view[at : at + length]))
            first, start = seq, at + length
    if start < len(view):
        units.append(_batch(first, seq, view[start:]))
    if not units or units[-1].last - units[0].first + 1 != records:
        raise RemoteProtocolError("malformed", f"not {records} records")
    yield from units


def tags_messages(found: Iterable[tuple[int, tuple[str, ...]]]) -> Iterator[Tags]:
    """The messages that define tag sets, given with their ids in order; one may be missing."""
    first, run = 0, list[tuple[str, ...]]()
    for tag_set, tags in found:
        if run and tag_set != first + len(run):
            yield from _defined(first, run)
            run = []
        if not run:
            first = tag_set
        run.append(tags)
    yield from _defined(first, run)


def left_out(units: Iterable[Unit], first: int, last: int, reason: str) -> Iterator[Unit]:
    """The same units with a gap in the place of the records `first` to `last`."""
    for unit in units:
        message = unit.messages[0]
        if unit.last < first or unit.first > last or isinstance(message, Gap):
            yield unit
            continue
        if isinstance(message, Batch) and unit.first < first:
            yield _slice(message, unit.first, first - 1)
        yield gap(max(unit.first, first), min(unit.last, last), reason)
        if isinstance(message, Batch) and unit.last > last:
            yield _slice(message, last + 1, unit.last)


def _batch(first: int, after: int, data: memoryview) -> Unit:
    return Unit(first, after - 1, len(data), (Batch(first, after - 1, data),))


def _parts(seq: int, data: memoryview) -> Unit:
    total = len(data)
    parts = tuple(
        Part(seq, at, total, data[at : at + MAX_DATA_BYTES])
        for at in range(0, total, MAX_DATA_BYTES)
    )
    return Unit(seq, seq, total, parts)


def _defined(first: int, tag_sets: list[tuple[str, ...]]) -> Iterator[Tags]:
    for message in definitions(tag_sets, 0):
        yield replace(message, first_id=first + message.first_id)


def _slice(batch: Batch, first: int, last: int) -> Unit:
    """The records `first` to `last` of a batch."""
    offsets = [0]
    for _ in range(batch.first_seq, last + 1):
        offsets.append(offsets[-1] + int(HEADER.unpack_from(batch.data, offsets[-1])[0]))
    data = batch.data[offsets[first - batch.first_seq] : offsets[last - batch.first_seq + 1]]
    return Unit(first, last, len(data), (Batch(first, last, data),))

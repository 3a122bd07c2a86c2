"""The newest value of each tag of each run, read from the journal like every reader reads it.

Nobody waits for this reader: what left the journal before it came for it is counted as skipped.
How many values there may be is capped, since a time series costs whoever stores it; which are left
out is known by name for as long as their number is bounded, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from sidestep.proto import RemoteProtocolError, Value

from ..alarms import PREFIX
from ..journal.reader import JournalReader, Row
from ..rows.points import MixedBlock, Points, ScalarBlock, read_points

MAX_LEFT_OUT: Final = 100_000
"""Tags beyond the cap that are remembered, to be counted once each."""

_MAX_CLIENTS: Final = 100_000
_DAEMON: Final = "daemon"
"""What the journal calls a client that is the daemon itself."""


@dataclass(slots=True)
class RunValues:
    """What is known of one run.

    Attributes:
        values: the newest value by tag.
        alarms: the levels of the alarms, by the representation's tag.
        newest_ns: when its clients emitted last, by their clocks; wall time in nanoseconds.
        left_out: hashes of the tags for which there was no room.
        total: its records up to and with the last row that was read; None before the first.
    """

    values: dict[str, float] = field(default_factory=dict[str, float])
    alarms: dict[str, float] = field(default_factory=dict[str, float])
    newest_ns: int = 0
    left_out: set[int] = field(default_factory=set[int])
    total: int | None = None


class LastValues:
    """One thread's; `runs` and the counts may be looked at by others between two `read`.

    Args:
        max_series: values of all runs together.
        on_full: called when there is no room for a value, the first time.
    """

    def __init__(self, max_series: int, on_full: Callable[[], None]) -> None:
        self.runs: dict[int, RunValues] = {}
        self.series = 0  # values that are known
        self.skipped = 0  # records that left before they were read, or cannot be read
        self._max_series = max_series
        self._on_full = on_full
        self._was_full = False
        self._row = 0
        self._clients: dict[int, tuple[int, str]] = {}

    @property
    def left_out(self) -> int:
        """Tags that are not, for want of room; no more than `MAX_LEFT_OUT` are counted."""
        return sum(len(run.left_out) for run in self.runs.values())

    def keep(self, run_ids: Collection[int]) -> None:
        """Know of these runs, and of no others any more."""
        for run_id in self.runs.keys() - set(run_ids):
            gone = self.runs.pop(run_id)
            self.series -= len(gone.values) + len(gone.alarms)
        for run_id in run_ids:
            if run_id not in self.runs:
                self.runs[run_id] = RunValues()

    def read(self, reader: JournalReader, until: int) -> bool:
        """Take in the next rows up to row `until`, a few megabytes; whether there were any.

        Raises:
            sqlite3.Error: the journal cannot be read; the next call goes on where this one was.
        """
        rows = reader.rows(self._row, until=until) if self._row < until else []
        for row in rows:
            self._take(reader, row)
            self._row = row.id
        if not rows:
            self._row = max(self._row, until)
        return bool(rows)

    def _take(self, reader: JournalReader, row: Row) -> None:
        if row.client_id not in self._clients:
            if len(self._clients) >= _MAX_CLIENTS:
                self._clients.clear()
            self._clients[row.client_id] = reader.client(row.client_id)
        run_id, state = self._clients[row.client_id]
        run = self.runs.get(run_id)
        if run is None:
            return
        if run.total is not None:
            self.skipped += max(0, row.total - row.records - run.total)
        run.total = row.total
        if row.damaged:
            self.skipped += row.records
            return
        points = _points(reader, row)
        if points is None:
            self.skipped += row.records
            return
        for tags, values in _newest(points):
            for tag, value in zip(tags, values, strict=True):
                if tag.startswith(PREFIX):
                    self._put_in(run, run.alarms, tag.removeprefix(PREFIX), value)
                else:
                    self._put_in(run, run.values, tag, value)
        if state != _DAEMON:
            # Who emits nothing but parts of reductions is at work, too.
            points = points or _points(reader, row, reduced=True) or []
            run.newest_ns = max([run.newest_ns, *map(_newest_ns, points)])

    def _put_in(self, run: RunValues, into: dict[str, float], tag: str, value: float) -> None:
        if tag in into:
            into[tag] = value
        elif self.series < self._max_series:
            into[tag] = value
            self.series += 1
            run.left_out.discard(hash(tag))
        elif hash(tag) not in run.left_out and self.left_out < MAX_LEFT_OUT:
            run.left_out.add(hash(tag))
            if not self._was_full:
                self._was_full = True
                self._on_full()


def _points(reader: JournalReader, row: Row, *, reduced: bool = False) -> list[Points] | None:
    """A row's points; None when it cannot be read."""
    for refresh in (False, True):
        try:
            tag_sets = reader.tag_sets(row.client_id, refresh)
            return list(read_points(row.data, tag_sets, any_order=True, reduced=reduced))
        except RemoteProtocolError:
            continue
    return None


def _newest(points: Iterable[Points]) -> Iterator[tuple[tuple[str, ...], list[float]]]:
    """Tags and their newest values, block by block; where a tag comes again the last one holds."""
    for block in points:
        if isinstance(block, ScalarBlock) and len(block.steps):
            yield block.tags, block.values[-1].tolist()
        elif isinstance(block, MixedBlock) and len(block.steps):
            # The last row of each tag set, in the order in which these rows came.
            counts = block.counts
            firsts = np.cumsum(counts) - counts
            rows = len(counts) - 1 - np.unique(block.which[::-1], return_index=True)[1]
            for row in np.sort(rows).tolist():
                tags = block.tag_sets[block.which[row]]
                first = int(firsts[row])
                yield tags, block.values[first : first + len(tags)].tolist()


def _newest_ns(point: Points) -> int:
    if isinstance(point, Value):
        return point.time_ns
    return int(point.times_ns.max()) if len(point.times_ns) else 0

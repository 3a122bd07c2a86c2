"""Bounds what the journal keeps for a service alone: the oldest of it is dropped, and counted.

Every other reader keeps its rows for as long as it takes; a service that is away for weeks must
not fill the disk. What waits for W&B alone, or for a Collector, is measured a few rows at a time,
from where it stands to where all others stand, without recent history, which is kept in any case.
Nothing is measured while there is no such row.

A drop is no more than letting rows go. Nobody writes down how many: rows count a run's records
without a gap, so that a sink which finds a gap before its next row knows what it missed. The
worker stores that with its cursor, in the same rename (`worker`); while it hangs, or cannot start,
the daemon sees the same gap between its cursor and the oldest row (`SinkHandle.dropped`). Thus the
number is exact whoever dies when, and nothing is counted twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from .journal.reader import JournalReader
from .supervision.supervisor import SinkHandle

CAPPED: Final = frozenset({"wandb", "otlp"})
"""Sinks behind which is a service that may be away for longer than a disk is large."""

_CHUNKS: Final = 256
"""The cap is kept to this part of itself: so many pieces are remembered at most."""

_ROWS_A_TICK: Final = 2000
"""Rows that are measured in one tick: milliseconds."""


@dataclass(slots=True)
class _Backlog:
    """What waits for one sink alone.

    Attributes:
        chunks: the last row of each measured piece and its bytes, oldest first.
        nbytes: of all pieces.
        open_bytes: of the rows since the last piece.
        measured: the last row that was measured.
        dropped: rows up to here may leave.
        said: whether the log has it.
    """

    chunks: deque[tuple[int, int]] = field(default_factory=deque[tuple[int, int]])
    nbytes: int = 0
    open_bytes: int = 0
    measured: int = 0
    dropped: int = 0
    said: bool = False

    def begin_at(self, row: int) -> None:
        """Forget what the sink has passed."""
        while self.chunks and self.chunks[0][0] <= row:
            self.nbytes -= self.chunks.popleft()[1]
        if self.measured < row:
            self.measured, self.open_bytes = row, 0

    def add(self, row: int, nbytes: int, chunk_bytes: int) -> None:
        """A further row."""
        self.measured = row
        self.open_bytes += nbytes
        if self.open_bytes >= chunk_bytes:
            self.chunks.append((row, self.open_bytes))
            self.nbytes += self.open_bytes
            self.open_bytes = 0

    def drop_oldest(self) -> int:
        """Let go of the oldest piece; its bytes."""
        self.dropped, nbytes = self.chunks.popleft()
        self.nbytes -= nbytes
        return nbytes


_Key = tuple[int, str]
"""Of a sink: its run and its name."""


def _key(sink: SinkHandle) -> _Key:
    return sink.run_id, sink.name


class BacklogCap:
    """The cap over all runs together. What two sinks wait for counts for each of them.

    Args:
        reader: a reading end of this thread's.
        cap_bytes: what may wait.
        log: says something to the daemon's log.
    """

    def __init__(self, reader: JournalReader, cap_bytes: int, log: Callable[[str], None]) -> None:
        self._reader = reader
        self._cap_bytes = cap_bytes
        self._chunk_bytes = max(1, cap_bytes // _CHUNKS)
        self._log = log
        self._backlogs: dict[_Key, _Backlog] = {}

    def look(self, sinks: Iterable[tuple[SinkHandle, int]]) -> None:
        """Measure on, and drop what is over the cap.

        Args:
            sinks: capped sinks, each with the last row that nobody else needs.
        """
        found: dict[_Key, SinkHandle] = {}
        for sink, until in sinks:
            found[_key(sink)] = sink
            self._measure(sink, until)
        over = sum(self._backlogs[key].nbytes for key in found) - self._cap_bytes
        while over > 0:
            waiting = [key for key in found if self._backlogs[key].chunks]
            oldest = min(waiting, key=lambda key: self._backlogs[key].chunks[0][0])
            over -= self._backlogs[oldest].drop_oldest()
            self._say(found[oldest])

    def passed(self, sink: SinkHandle) -> int:
        """The row up to which the sink needs nothing any more."""
        backlog = self._backlogs.get(_key(sink))
        return max(sink.cursor.row, backlog.dropped if backlog else 0)

    def _measure(self, sink: SinkHandle, until: int) -> None:
        backlog = self._backlogs.setdefault(_key(sink), _Backlog())
        backlog.begin_at(max(sink.cursor.row, backlog.dropped))
        if backlog.dropped > sink.cursor.row:
            sink.gone = self._reader.beginning(sink.run_id)[1]
        if until <= backlog.measured:
            backlog.said = backlog.said and bool(backlog.chunks)
            return
        rows = self._reader.sizes(sink.run_id, backlog.measured, until, _ROWS_A_TICK)
        for row, nbytes in rows:
            backlog.add(row, nbytes, self._chunk_bytes)
        if not rows:
            backlog.measured = until  # the other runs' rows

    def _say(self, sink: SinkHandle) -> None:
        backlog = self._backlogs[_key(sink)]
        if not backlog.said:
            backlog.said = True
            self._log(
                f"{sink.name} of run {sink.spec.name!r}: more than {self._cap_bytes >> 20} MiB "
                "(wandb_backlog_mb) wait for it alone; the oldest records are dropped for it"
            )

"""Answers `tail`'s question for points that were journalled before it began to listen."""

from __future__ import annotations

import fnmatch
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ..journal.reader import JournalReader, rows_iterator
from .feed import scalar_rows

_MAX_POINTS: Final = 50_000
"""Points in one answer, about: a long one would keep the daemon's other askers waiting."""

Point = tuple[int, str, str, int, float, float]  # row, run, tag, step, wall time, value


def history(
    reader: JournalReader,
    names: Mapping[int, str],
    *,
    run: str | None,
    globs: Sequence[str],
    points: int,
    after: int | None,
    until: int,
) -> tuple[int, list[dict[str, Any]], dict[int, tuple[int, int]]]:
    """Points in the journal up to row `until`, oldest first.

    Args:
        reader: of the journal.
        names: names of the runs by their ids.
        run: only this run; None for all.
        globs: only tags that match one of these; empty for all.
        points: the newest so many of each tag, when `after` is None.
        after: everything after this row that is still there.
        until: the newest row to look at.

    Returns:
        The row up to which they go, and the points. With `after`, that row may come before
        `until`, when there are very many: the next question goes on from there. Then, by the ids
        of the runs that were looked at, how many records each had before, and up to the last row.
    """
    matches = _matcher(globs)
    limit = None if after is not None else points
    if limit == 0:
        return until, [], {}
    spans: dict[int, tuple[int, int]] = {}
    found_points = 0
    kept: dict[tuple[str, str], deque[Point]] = defaultdict(lambda: deque(maxlen=limit))
    for row in rows_iterator(reader, after or 0, until):
        if limit is None and found_points >= _MAX_POINTS:
            until = row.id - 1
            break
        run_id = reader.run_of_client(row.client_id)
        name = names.get(run_id, "")
        if run is not None and name != run:
            continue
        spans[run_id] = spans.get(run_id, (row.total - row.records, 0))[0], row.total
        for tags, steps, times, values in scalar_rows(reader, row):
            for column, tag in enumerate(tags):
                if not matches(tag):
                    continue
                last = len(steps) if limit is None else min(limit, len(steps))
                found_points += last
                for i in range(len(steps) - last, len(steps)):
                    kept[name, tag].append(
                        (row.id, name, tag, steps[i], times[i], values[i][column])
                    )
    found = sorted((p for points_ in kept.values() for p in points_), key=lambda p: (p[0], p[4]))
    shown = [
        {"run": name, "tag": tag, "step": step, "wall_time": wall_time, "value": value}
        for _, name, tag, step, wall_time, value in found
    ]
    return until, shown, spans


def _matcher(globs: Sequence[str]) -> Callable[[str], bool]:
    if not globs:
        return lambda _tag: True
    return lambda tag: any(fnmatch.fnmatchcase(tag, glob) for glob in globs)

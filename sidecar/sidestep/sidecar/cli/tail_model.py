"""What the live table knows: of each tag its last value, its trend, its rate and its age. No I/O.

Memory is bounded whatever comes: a tag's trend is a fixed number of means over ever longer
stretches, and tags above a limit are counted and not kept.
"""

from __future__ import annotations

import re
from bisect import insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from .follow import Block

Presence = Literal["absent", "silent", "there"]
"""Whether there is a daemon, and whether it says anything."""

MAX_TAGS: Final = 5000
"""Tags kept; with a trend of 256 means each, about 50 MB."""

_TREND_CELLS: Final = 256
"""Means a trend keeps at most: more than a wide terminal has columns for it."""

_MARKS: Final = 64
_STEP_MARKS: Final = 128
_MARK_EVERY_S: Final = 0.5
"""Marks in time from which a rate is told: the last half minute of a busy tag."""

_SortKey = tuple[int | str, ...]

_FIRST_GROUPS: Final = ("train", "val", "train_epoch", "test")
_LAST_GROUPS: Final = ("training", "gradients", "weights", "system", "sidestep")


class Trend:
    """All values since the start, as at most `cells` means over equally many values each."""

    def __init__(self, cells: int = _TREND_CELLS) -> None:
        self._limit = cells
        self._means: list[float] = []
        self._per_cell = 1
        self._part = 0.0  # of the mean of the cell that is not yet full
        self._part_values = 0

    def add(self, values: Sequence[float]) -> None:
        """Append values, oldest first."""
        start = 0
        while start < len(values):
            taken = values[start : start + self._per_cell - self._part_values]
            start += len(taken)
            self._part_values += len(taken)
            self._part += sum(taken) / self._per_cell
            if self._part_values == self._per_cell:
                self._means.append(self._part)
                self._part, self._part_values = 0.0, 0
                if len(self._means) == self._limit:
                    self._halve()

    def _halve(self) -> None:
        pairs = zip(self._means[::2], self._means[1::2], strict=True)
        self._means = [a / 2 + b / 2 for a, b in pairs]
        self._per_cell *= 2

    def cells(self) -> list[float]:
        """The means, oldest first; a value that is not finite makes its mean not finite."""
        if not self._part_values:
            return list(self._means)
        return [*self._means, self._part * (self._per_cell / self._part_values)]


@dataclass(slots=True)
class _Series:
    step: int = 0
    value: float = 0.0
    wall_time: float = 0.0
    points: int = 0
    trend: Trend = field(default_factory=Trend)
    marks: deque[tuple[float, int]] = field(
        default_factory=lambda: deque[tuple[float, int]](maxlen=_MARKS)
    )

    def add(self, steps: Sequence[int], times: Sequence[float], values: Sequence[float]) -> None:
        self.step, self.wall_time, self.value = steps[-1], times[-1], values[-1]
        if not self.marks:
            self.marks.append((times[0], 1))
        self.points += len(values)
        self.trend.add(values)
        if times[-1] - self.marks[-1][0] >= _MARK_EVERY_S:
            self.marks.append((times[-1], self.points))

    def rate(self, now: float) -> float:
        """Points a second between the marks; it fades when no more come."""
        (first_time, first_points), (last_time, last_points) = self.marks[0], self.marks[-1]
        points, span = last_points - first_points, last_time - first_time
        if points <= 0 or span <= 0:
            return 0.0
        # One interval of patience: between two points of a steady tag nothing has stopped.
        patience = max(span / points, _MARK_EVERY_S)
        return points / max(span, now - first_time - patience)


class StepClock:
    """How fast the steps of one tag come; where they go back, it begins anew."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque(maxlen=_STEP_MARKS)
        self._newest: tuple[float, int] | None = None

    def add(self, step: int, time: float) -> bool:
        """A point of `step` was emitted at `time`; whether that is back from where it was."""
        if self._newest is not None and step == self._newest[1]:
            return False
        went_back = self._newest is not None and step < self._newest[1]
        if went_back:
            self._marks.clear()
        self._newest = time, step
        if not self._marks or time - self._marks[-1][0] >= _MARK_EVERY_S:
            self._marks.append(self._newest)
        return went_back

    def rate(self, now: float) -> float:
        """Steps a second; it fades when no more come."""
        if self._newest is None or not self._marks:
            return 0.0
        (first_time, first_step), (last_time, last_step) = self._marks[0], self._newest
        steps, span = last_step - first_step, last_time - first_time
        if steps <= 0 or span <= 0:
            return 0.0
        patience = 2 * max(span / max(1, len(self._marks)), _MARK_EVERY_S)
        return steps / max(span, now - first_time - patience)


@dataclass(frozen=True, slots=True)
class Row:
    """One tag as the table shows it; `trend` is oldest first, `rate` points a second."""

    tag: str
    value: float
    trend: Sequence[float]
    step: int
    rate: float
    age_s: float


class TailModel:
    """The state behind the live table."""

    def __init__(self) -> None:
        self.run: str | None = None
        self.presence: Presence = "there"
        self.status: Mapping[str, Any] = {}
        self.last_step: int | None = None
        self.missed = 0  # records that the feed skipped, since this terminal was too slow
        self.tags_version = 0  # another one when there are other tags
        self._steps = StepClock()
        self._clock_tag = ""
        self._series: dict[str, _Series] = {}
        self._order: list[tuple[_SortKey, str]] = []
        self._left_out: set[str] = set()

    def show(self, run: str | None) -> None:
        """Say which run is followed; another one's rows go."""
        if run != self.run:
            self.run = run
            self.last_step = None
            self.tags_version += 1
            self._steps, self._clock_tag = StepClock(), ""
            self._series.clear()
            self._order.clear()
            self._left_out.clear()

    def add(self, block: Block) -> None:
        """Take points of the run."""
        newest = max(block.steps)
        self.last_step = newest if self.last_step is None else max(newest, self.last_step)
        for tag, values in zip(block.tags, zip(*block.values, strict=True), strict=True):
            series = self._series.get(tag)
            if series is None:
                series = self._new(tag)
                if series is None:
                    continue
            series.add(block.steps, block.wall_times, values)
        self._tell_steps(block)

    def _tell_steps(self, block: Block) -> None:
        """Time goes by the steps of the tag that comes most often: others may count epochs."""
        lead, leading = block.tags[0], self._series.get(self._clock_tag)
        series = self._series.get(lead)
        if series is not None and (leading is None or series.points > 2 * leading.points):
            if lead != self._clock_tag:
                self._steps = StepClock()
            self._clock_tag = lead
        if self._clock_tag in block.tags:
            went_back = self._steps.add(block.steps[0], block.wall_times[0])
            went_back |= self._steps.add(block.steps[-1], block.wall_times[-1])
            if went_back:
                self.last_step = block.steps[-1]

    def _new(self, tag: str) -> _Series | None:
        if len(self._series) >= MAX_TAGS:
            if len(self._left_out) < MAX_TAGS:
                self._left_out.add(tag)
            return None
        self.tags_version += 1
        insort(self._order, (_sort_key(tag), tag))
        series = self._series[tag] = _Series()
        return series

    @property
    def tags(self) -> int:
        """How many tags the run has shown."""
        return len(self._series) + len(self._left_out)

    def rows(self, limit: int, now: float) -> list[Row]:
        """The first `limit` tags: losses and scores first, the many and the machine's last."""
        return [self.row(tag, now) for _, tag in self._order[: max(0, limit)]]

    def names(self) -> list[str]:
        """The tags that are kept, in the order of `rows`."""
        return [tag for _, tag in self._order]

    def row(self, tag: str, now: float) -> Row:
        """One tag, which must be one of `names`."""
        series = self._series[tag]
        age = max(0.0, now - series.wall_time)
        cells = series.trend.cells()
        return Row(tag, series.value, cells, series.step, series.rate(now), age)

    def last(self, tag: str) -> tuple[float, float] | None:
        """A tag's last value and when it was emitted; None when it is not kept."""
        series = self._series.get(tag)
        return None if series is None else (series.value, series.wall_time)

    def step_rate(self, now: float) -> float:
        """Training steps a second."""
        return self._steps.rate(now)

    def runs(self) -> list[str]:
        """The names of all runs that the daemon knows, each once, the most recent last."""
        named = (str(run.get("run")) for run in self.status.get("runs") or ())
        return list(dict.fromkeys(named))

    def run_status(self) -> Mapping[str, Any]:
        """What the daemon says of the run; empty when it says nothing."""
        for run in self.status.get("runs") or ():
            if run.get("run") == self.run:
                found: Mapping[str, Any] = run
                return found
        return {}


def _sort_key(tag: str) -> _SortKey:
    """Where a tag stands: what people look for comes first, and layer 2 before layer 10."""
    group = tag.partition("/")[0]
    if group in _FIRST_GROUPS:
        rank = _FIRST_GROUPS.index(group)
    elif group in _LAST_GROUPS:
        rank = len(_FIRST_GROUPS) + 1 + _LAST_GROUPS.index(group)
    else:
        rank = len(_FIRST_GROUPS)
    texts = re.split(r"([0-9]{1,18})", tag)  # text, number, text, …
    return (
        rank,
        *texts[:1],
        *(
            part
            for digits, text in zip(texts[1::2], texts[2::2], strict=True)
            for part in (int(digits), text)
        ),
    )

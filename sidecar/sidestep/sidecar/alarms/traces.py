"""Recorded statistics to the observations that they were: what a replay of the alarms begins with.

A representation's figures are recorded as numbers under ``T_<suffix>``; those of one observation
have one step and one wall time. Observations come in the order of their wall times, which is that
of their arrival; steps may go backwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from .observation import FIGURES, ZERO_VARIANCE, Observation

_SUFFIXES: Final = tuple(sorted({*FIGURES, ZERO_VARIANCE}, key=len, reverse=True))
_TELLING: Final = frozenset({"nonfinite", "variance_share", "pr_images", "n_images"})
"""Only a representation has one of these; many a tag ends in ``_loss``."""


class TracePoint(NamedTuple):
    """One recorded number."""

    run: str
    tag: str
    step: int
    wall_time_s: float
    value: float


class Traced(NamedTuple):
    """An observation, and whose it was."""

    run: str
    tag: str
    observation: Observation


def observations(points: Iterable[TracePoint]) -> Iterator[Traced]:
    """The observations in `points`, which may come in any order."""
    found: dict[tuple[float, int, str, str], dict[str, float]] = {}
    for point in points:
        for suffix in _SUFFIXES:
            if point.tag.endswith(f"_{suffix}"):
                tag = point.tag[: -len(suffix) - 1]
                key = (point.wall_time_s, point.step, point.run, tag)
                found.setdefault(key, {})[suffix] = point.value
                break
    # Sorted by time alone: of one time, they stay in the order in which they were recorded.
    for key in sorted(found, key=lambda key: key[0]):
        _, step, run, tag = key
        if not _TELLING.isdisjoint(found[key]):
            yield Traced(run, tag, Observation.of(step, found[key]))

"""Medians, spreads and ratios of what the trials measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from tests.bench.metrics import METRICS, Metric

FLOOR: Final = "empty"
"""The system that does nothing; nothing is compared with it."""

OURS: Final = "sidestep"
"""The system that all others are compared with."""

LEAST_NOISE: Final = 2.0
"""Rounds of one run meet the same neighbours on the machine, two runs need not, and neither shows
that noise: wandb's burst, with the same code, differed threefold between runs minutes apart."""

Samples = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Metric key → system → round → value."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds and how far they were apart.

    Attributes:
        median: of all rounds.
        low: the least.
        high: the most.
        rounds: how many there were.
    """

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one value."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found), len(found))


Ratios = Mapping[str, Mapping[str, Spread]]
"""Metric key → peer → how many times better sidestep is."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What is reported and stored.

    Attributes:
        values: metric key → system → its spread.
        ratios: metric key → peer → how many times better sidestep is, paired by round.
    """

    values: dict[str, dict[str, Spread]]
    ratios: dict[str, dict[str, Spread]]

    def as_json(self) -> dict[str, object]:
        """Plain dictionaries and numbers."""
        return asdict(self)


def quantile(ordered: Sequence[float], q: float) -> float:
    """The nearest-rank quantile: a value that was measured, never one between two."""
    if not ordered:
        raise ValueError("a quantile of nothing: at least one value is needed")
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def summarize(samples: Samples, metrics: Iterable[Metric] = METRICS) -> Summary:
    """Medians over rounds, and ratios of the same round: the machine's drift hits both sides."""
    values: dict[str, dict[str, Spread]] = {}
    ratios: dict[str, dict[str, Spread]] = {}
    for metric in metrics:
        by_system = {system: by for system, by in samples.get(metric.key, {}).items() if by}
        if not by_system:
            continue
        values[metric.key] = {system: Spread.of(by.values()) for system, by in by_system.items()}
        ours = by_system.get(OURS, {})
        for system, theirs in by_system.items():
            pairs = [(ours[n], theirs[n]) for n in sorted(ours.keys() & theirs.keys())]
            if system not in (OURS, FLOOR) and pairs:
                better = Spread.of(metric.times_better(a, b) for a, b in pairs)
                ratios.setdefault(metric.key, {})[system] = better
    return Summary(values, ratios)


def stored_ratios(report: Any) -> Ratios:
    """The ratios in the object that `--json` wrote.

    Raises:
        ValueError: it is not such an object.
    """
    try:
        return {
            key: {peer: Spread(**spread) for peer, spread in by_peer.items()}
            for key, by_peer in report["ratios"].items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"this is no report that --json wrote: {error!r}") from error


def lost_ratios(now: Ratios, before: Ratios) -> list[str]:
    """A sentence for each ratio that got worse by more than the noise of both runs.

    A ratio is lost when its best round is worse than the worst one before, by `LEAST_NOISE` at
    least. Not compared are what only one of the runs measured, what a run measured in one round,
    for nobody knows its noise, and the worst calls: each of them is one event of the machine's.
    """
    lost: list[str] = []
    for key, by_peer in before.items():
        if key.endswith(".max"):
            continue
        for peer, then in by_peer.items():
            spread = now.get(key, {}).get(peer)
            if spread is None or min(spread.rounds, then.rounds) < 2:
                continue
            if spread.high * LEAST_NOISE < then.low:
                lost.append(
                    f"{key} against {peer}: {spread.median:.3g}× (at best {spread.high:.3g}×), "
                    f"was {then.median:.3g}× (at worst {then.low:.3g}×)"
                )
    return lost

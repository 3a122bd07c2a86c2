"""The ranks of a run, each with its step and what a step takes; and the one that holds up the rest.

A rank is compared with the median of the others, so that of two, too, the slower one is told. Where
all ranks wait for each other in every step they take equally long, and nothing here tells them
apart: `step_time_s` is from one step to the next, with the waiting in it. Steps behind are told in
any training, and of a rank that hangs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Final

from ..ingest.roster import NODE, ClientEntry

_SLOWER: Final = 1.2
"""A step that takes so much longer than the others' is no chance."""

_HEARD_S: Final = 3.0
"""Ranks tell their steps once a second, not all at the same moment."""

_FEWEST_STEPS: Final = 3


def newest_of_ranks(clients: Iterable[ClientEntry]) -> list[ClientEntry]:
    """Of each rank of a run's newest world the client that speaks for it, in the ranks' order."""
    known = [entry for entry in clients if entry.row.state != NODE]
    newest = max((entry.world for entry in known), default=0)
    found: dict[int, ClientEntry] = {}
    for entry in known:
        best = found.get(entry.row.rank)
        if entry.world == newest and (best is None or _standing(entry) > _standing(best)):
            found[entry.row.rank] = entry
    return [found[rank] for rank in sorted(found)]


def _standing(entry: ClientEntry) -> tuple[bool, bool, int]:
    """Of several clients of a rank, one that lives and that trains says more than the others."""
    books = entry.session.books
    return entry.row.state == "live", books.step is not None, entry.row.id


def about(clients: Iterable[ClientEntry]) -> dict[str, Any]:
    """What status says of a run's ranks: `ranks`, and `straggler` or None."""
    ranks = [_rank(entry) for entry in newest_of_ranks(clients)]
    return {"ranks": ranks, "straggler": straggler(ranks)}


def _rank(entry: ClientEntry) -> dict[str, Any]:
    books = entry.session.books
    return {
        "rank": entry.row.rank,
        "host": entry.hello.host,
        "step": entry.row.last_step if books.step is None else books.step,
        "step_time_s": books.step_ns / 1e9 if books.step_ns else None,
        "state": entry.row.state,
    }


def straggler(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The living rank that is furthest behind the others; else the one whose steps take longest.

    Returns:
        `rank`, `host`, `steps_behind`, `step_time_s`, `median_step_time_s` (of the others) and
        `reason`, a sentence without its subject; None when no rank stands out.
    """
    living = [one for one in ranks if one["state"] == "live" and one["step_time_s"]]
    found = [one for one in (_beside(each, living) for each in living) if one is not None]
    behind = [one for one in found if one["steps_behind"] > _tolerated(one)]
    if behind:
        worst = max(behind, key=lambda one: one["steps_behind"])
        many = worst["steps_behind"]
        return {**worst, "reason": f"is {many:,} step{'' if many == 1 else 's'} behind"}
    slow = [one for one in found if one["step_time_s"] > _SLOWER * one["median_step_time_s"]]
    if not slow:
        return None
    worst = max(slow, key=lambda one: one["step_time_s"] / one["median_step_time_s"])
    took, others = worst["step_time_s"], worst["median_step_time_s"]
    return {**worst, "reason": f"takes {took:.3g} s a step, the others' median is {others:.3g} s"}


def _beside(one: Mapping[str, Any], living: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    others = [other for other in living if other is not one]
    if not others:
        return None
    return {
        "rank": one["rank"],
        "host": one["host"],
        "steps_behind": max(0, round(median(other["step"] for other in others)) - one["step"]),
        "step_time_s": one["step_time_s"],
        "median_step_time_s": median(other["step_time_s"] for other in others),
    }


def _tolerated(one: Mapping[str, Any]) -> float:
    """Steps that a rank may seem behind, only because it was heard of a moment earlier."""
    median_s: float = one["median_step_time_s"]
    return max(_FEWEST_STEPS, _HEARD_S / median_s)


def step_times(clients: Iterable[ClientEntry]) -> dict[str, float]:
    """The step times of the living ranks as metrics: their mean; of several their spread, too."""
    found = [
        entry.session.books.step_ns / 1e9
        for entry in newest_of_ranks(clients)
        if entry.row.state == "live" and entry.session.books.step_ns
    ]
    if not found:
        return {}
    mean = sum(found) / len(found)
    tag = "sidestep/step_time_s"
    if len(found) == 1:
        return {tag: mean}
    std = (sum((x - mean) ** 2 for x in found) / len(found)) ** 0.5
    return {tag: mean, f"{tag}_std": std, f"{tag}_min": min(found), f"{tag}_max": max(found)}

"""Draws the growth curves: CPU seconds per million scalars over clients, tags and length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tests.bench.growth import Point

_TITLES: Final = {
    "clients": "clients of one run",
    "tags": "distinct tags",
    "ranks": "ranks of one run, reduced to their mean",
    "length": "scalars in the run so far",
}
_PARTS: Final = (
    ("all", "cpu", "0.15"),
    ("daemon", "daemon_cpu", "C0"),
    ("its workers", "workers_cpu", "C2"),
    ("trainers", "client_cpu", "C1"),
)


def draw(points: Sequence[Point], path: Path) -> None:
    """A panel for each curve; all begin at zero, so that flat looks flat."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib.figure import Figure

    curves = list(dict.fromkeys(point.curve for point in points))
    figure = Figure(figsize=(4 * len(curves), 3), layout="constrained")
    panels: Any = figure.subplots(1, len(curves), squeeze=False)
    top = 1.15 * max(point.cpu for point in points)
    for axis, curve in zip(panels[0], curves, strict=True):
        shown = [point for point in points if point.curve == curve]
        for label, name, colour in _PARTS:
            values = [getattr(point, name) for point in shown]
            axis.plot([p.x for p in shown], values, "o-", color=colour, markersize=4, label=label)
        axis.set_xscale("log")
        axis.set_ylim(0, top)
        axis.set_xlabel(_TITLES[curve], fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("CPU s per million scalars", fontsize=9)
    panels[0][0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})

"""Draws the healthy digits run beside the one that collapses, from what sidestep recorded of both.

    make demo
    make demo ARGS="--collapse complete"
    .venv/bin/python client/examples/collapse_picture.py

The loss falls in both. The variance share and the participation ratio of the images tell them
apart; where the alarm says COLLAPSED there is a red line.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sidestep.sidecar.archive.reader import Run, find_run

TAG: Final = "train/target"
ALARM: Final = f"sidestep/alarm/{TAG}"
COLLAPSED: Final = 3
CRITICAL_SHARE: Final = 1e-3
"""Variance share below which the default rules call a collapse complete."""

PANELS: Final = (
    ("train/loss", "loss", "log"),
    (f"{TAG}_variance_share", "variance share of the targets", "log"),
    (f"{TAG}_pr_images", "participation ratio of the images", "linear"),
)
SMOOTHED: Final = 25
"""Steps over which the loss is averaged: it is logged at every step, and it is noisy."""

INCHES, DPI = (10.0, 3.2), 110
HEALTHY, ILL, ALARMED = "#2a7f62", "#b5651d", "#c0202a"


def curve(run: Run, tag: str) -> tuple[list[int], list[float]]:
    """Steps and values of a tag, in the order of the steps; a run's newest attempt wins."""
    found = {point.step: point.value for point in run.points([tag])}
    kept = {step: value for step, value in sorted(found.items()) if math.isfinite(value)}
    return list(kept), list(kept.values())


def smoothed(steps: list[int], values: list[float]) -> tuple[list[int], list[float]]:
    """Means of `SMOOTHED` neighbours at a time."""
    parts = range(0, len(steps) - SMOOTHED + 1, SMOOTHED)
    return (
        [steps[at + SMOOTHED // 2] for at in parts],
        [math.fsum(values[at : at + SMOOTHED]) / SMOOTHED for at in parts],
    )


def alarm_step(run: Run) -> int | None:
    """Where the alarm said COLLAPSED first; None when it never did."""
    steps, levels = curve(run, ALARM)
    return next((s for s, at in zip(steps, levels, strict=True) if at >= COLLAPSED), None)


def recorded(log_dir: str, name: str) -> Run:
    """The record of a run.

    Raises:
        SystemExit: there is none.
    """
    run = find_run(log_dir, name)
    if run is None:
        raise SystemExit(f"no run {name} in {log_dir}: make it first, see --help")
    return run


def draw(healthy: Run, ill: Run) -> Figure:
    """The three panels.

    Raises:
        SystemExit: a run lacks one of the curves, or the alarms are not as they should be.
    """
    fell = alarm_step(ill)
    if fell is None or alarm_step(healthy) is not None:
        raise SystemExit(f"expected an alarm in {ill.name} and none in {healthy.name}")
    figure = Figure(figsize=INCHES, layout="constrained")
    axes: Any = figure.subplots(1, len(PANELS))
    for axis, (tag, title, scale) in zip(axes, PANELS, strict=True):
        for run, colour, name in ((healthy, HEALTHY, "healthy"), (ill, ILL, "collapsing")):
            steps, values = curve(run, tag)
            if not steps:
                raise SystemExit(f"{run.name} has no {tag}")
            if tag == "train/loss":
                steps, values = smoothed(steps, values)
            axis.plot(steps, values, color=colour, linewidth=1.6, label=name)
        axis.axvline(fell, color=ALARMED, linewidth=1.0, linestyle="--", label="alarm")
        axis.set_yscale(scale)
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].axhline(CRITICAL_SHARE, color="0.6", linewidth=0.8, linestyle=":")
    axes[0].legend(frameon=False, fontsize=9)
    return figure


def main() -> None:
    """Read both runs, draw, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--healthy", default="digits-jepa", help="name of the run")
    parser.add_argument("--ill", default="digits-jepa-complete", help="name of the run")
    parser.add_argument("--log-dir", default=os.environ.get("SIDESTEP_LOG_DIR", "results/logs"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("collapse.png"))
    args = parser.parse_args()
    mpl.use("agg")
    healthy, ill = (recorded(args.log_dir, name) for name in (args.healthy, args.ill))
    draw(healthy, ill).savefig(args.out, dpi=DPI, metadata={"Software": None})
    print(f"{args.out}: {ill.name} collapsed at step {alarm_step(ill)}")


if __name__ == "__main__":
    main()

"""What the tables show: every measured metric with its row, unit, sense and goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the table.

    Attributes:
        key: as trials report it; what stands before the first dot is the row that `--rows` names.
        workload: the workload that measures it.
        label: what it is, for people.
        unit: "s", "MB" or "/s"; times are shown in the unit that suits them.
        goal: what is to be reached, in `unit`; None: nothing was promised.
        higher_is_better: a rate, not a time.
    """

    key: str
    workload: str
    label: str
    unit: str = "s"
    goal: float | None = None
    higher_is_better: bool = False

    @property
    def row(self) -> str:
        """The row that it belongs to."""
        return self.key.split(".")[0]

    def reached(self, value: float) -> bool | None:
        """Whether `value` reaches the goal; None without a goal."""
        if self.goal is None:
            return None
        return value >= self.goal if self.higher_is_better else value <= self.goal

    def times_better(self, ours: float, theirs: float) -> float:
        """How many times better `ours` is than `theirs`."""
        better, worse = (theirs, ours) if self.higher_is_better else (ours, theirs)
        return worse / better if better else float("inf")


METRICS: Final = (
    Metric("import", "import", "import of the library", goal=0.060),
    Metric("open", "burst", "connect (with no daemon running) / open", goal=1.0),
    Metric("burst.mean", "burst", "emit of 20 numbers, burst: mean", goal=4e-6),
    Metric("burst.p50", "burst", "… p50"),
    Metric("burst.p99", "burst", "… p99"),
    Metric("burst.max", "burst", "… worst"),
    Metric("burst.cpu", "burst", "… CPU of the calling thread, mean"),
    Metric("wide.mean", "wide", "emit of 1,000 numbers, burst: mean"),
    Metric("wide.p50", "wide", "… p50"),
    Metric("wide.p99", "wide", "… p99"),
    Metric("tensors.mean", "tensors", "emit of 20 0-d tensors on the CPU, burst: mean"),
    Metric("tensors.p50", "tensors", "… p50"),
    Metric("tensors.p99", "tensors", "… p99"),
    Metric("paced.mean", "paced", "emit of 20 numbers, every 5 ms: mean", goal=70e-6),
    Metric("paced.p50", "paced", "… p50"),
    Metric("paced.p99", "paced", "… p99", goal=150e-6),
    Metric("paced.max", "paced", "… worst"),
    Metric("finish", "paced", "finish / close, after that"),
    Metric("exit", "paced", "from there to the end of the trainer's process"),
    Metric("stopped.mean", "stopped", "emit of 20 numbers every ms, helpers stopped: mean"),
    Metric("stopped.p99", "stopped", "… p99"),
    Metric("stopped.max", "stopped", "… worst", goal=5e-3),
    Metric("loop.p50", "loop", "training step with an emit of 20 numbers: p50"),
    Metric("loop.bare.p50", "loop", "… the same step without, between them: p50"),
    Metric("loop.mean", "loop", "… with: mean"),
    Metric("loop.bare.mean", "loop", "… without: mean"),
    Metric("gil.p50", "gil", "200 µs of Python between emits of 200 numbers: p50"),
    Metric("gil.mean", "gil", "… mean"),
    Metric("gil.p99", "gil", "… p99"),
    Metric("gil.max", "gil", "… worst"),
    Metric("gil.rate", "gil", "… scalars per second meanwhile", "/s", higher_is_better=True),
    Metric("tail.p50", "latency", "emit to a line of `tail --json`: p50"),
    Metric("tail.p99", "latency", "… p99", goal=0.2),
    Metric("file.p50", "latency", "emit to the event file: p50"),
    Metric("file.p99", "latency", "… p99", goal=0.5),
    Metric(
        "throughput",
        "throughput",
        "scalars per second, emit to file",
        "/s",
        3e6,
        higher_is_better=True,
    ),
    Metric("cpu", "throughput", "CPU per million scalars, all processes", goal=0.7),
    Metric("memory.rss", "throughput", "RSS of all helper processes under load", "MB", goal=150.0),
    Metric("memory.peak", "throughput", "… sum of their peaks", "MB"),
    Metric("memory.pss", "throughput", "… what they share counted once", "MB"),
    Metric("memory.trainer", "throughput", "… what it adds to the trainer's own RSS", "MB"),
    Metric("image8.p50", "payloads", "emit of a 3×224×224 uint8 image, burst: p50", goal=100e-6),
    Metric("image8.mean", "payloads", "… mean"),
    Metric("image8.paced.p50", "payloads", "… one every 100 ms: p50"),
    Metric("image8.paced.mean", "payloads", "… one every 100 ms: mean"),
    Metric("image.p50", "payloads", "emit of a 3×224×224 float32 image, burst: p50", goal=100e-6),
    Metric("image.mean", "payloads", "… mean"),
    Metric("image.paced.p50", "payloads", "… one every 100 ms: p50"),
    Metric("image.paced.mean", "payloads", "… one every 100 ms: mean"),
    Metric("histogram.p50", "payloads", "emit of a 590,000-float histogram, burst: p50", goal=2e-3),
    Metric("histogram.mean", "payloads", "… mean"),
    Metric("histogram.paced.p50", "payloads", "… one every 100 ms: p50"),
    Metric("histogram.paced.mean", "payloads", "… one every 100 ms: mean"),
    Metric("ready", "ready", "`sidestep serve` to its line that it is ready", goal=0.7),
    Metric("ready.idle", "ready", "RSS of the daemon then", "MB"),
    Metric("ready.join", "ready", "connect with the daemon running"),
    Metric("ready.stop", "ready", "SIGTERM to its exit"),
)

RATIO_GOALS: Final = {
    ("burst.mean", "SummaryWriter"): 400.0,
    ("burst.mean", "wandb"): 100.0,
    ("throughput", "SummaryWriter"): 300.0,
}
"""How many times better than a peer sidestep is to be, by metric and peer."""

ROWS: Final = tuple(dict.fromkeys(metric.row for metric in METRICS))
"""All rows, in the order of the table."""

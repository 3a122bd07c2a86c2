"""Which workloads there are, how much of each, and what is run for the rows that were asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tests.bench.delivery import latency
from tests.bench.lifecycle import fresh_import, ready
from tests.bench.loops import GIL_NUMBERS, gil, loop
from tests.bench.metrics import METRICS, Metric
from tests.bench.more_systems import MORE_SYSTEMS
from tests.bench.payloads import payloads
from tests.bench.summary import FLOOR
from tests.bench.systems import SYSTEMS
from tests.bench.workloads import (
    Workload,
    burst,
    paced,
    stopped,
    tensors,
    throughput,
    wide,
)

_PEERS: Final = ("sidestep", "SummaryWriter", "tensorboardX", "wandb")
_MORE: Final = dict.fromkeys(MORE_SYSTEMS, (300, 100))

WORKLOADS: Final[Mapping[str, Workload]] = {
    "import": Workload(fresh_import, dict.fromkeys((*_PEERS, *MORE_SYSTEMS), (0, 0)), opened=False),
    # Sizes are steps of 20 numbers, so many that the slow take seconds; sidestep's must fit its
    # outbox (64 MiB, 200 bytes a step), or the burst would measure how the sinks keep up.
    "burst": Workload(
        burst,
        {
            "sidestep": (50_000, 20_000),
            "SummaryWriter": (1_000, 300),
            "tensorboardX": (1_000, 300),
            "wandb": (2_000, 500),
            "empty": (50_000, 20_000),
            **_MORE,
        },
    ),
    "wide": Workload(
        wide,
        {
            "sidestep": (3_000, 1_000),
            "SummaryWriter": (60, 20),
            "tensorboardX": (60, 20),
            "wandb": (100, 40),
            "empty": (3_000, 1_000),
        },
        rounds=2,
        numbers=1_000,
    ),
    "tensors": Workload(
        tensors,
        {
            "sidestep": (20_000, 5_000),
            "SummaryWriter": (500, 200),
            "tensorboardX": (500, 200),
            "wandb": (1_000, 300),
            "empty": (20_000, 5_000),
        },
        rounds=2,
    ),
    "paced": Workload(paced, {**dict.fromkeys(SYSTEMS, (600, 200)), **_MORE}, few=True),
    # These are seconds.
    "stopped": Workload(stopped, {"sidestep": (10, 2), "wandb": (3, 2), "empty": (5, 2)}, rounds=2),
    "loop": Workload(loop, {**dict.fromkeys(SYSTEMS, (500, 150)), **_MORE}, rounds=2, few=True),
    "gil": Workload(
        gil,
        {
            "sidestep": (15_000, 5_000),
            "SummaryWriter": (200, 60),
            "tensorboardX": (200, 60),
            "wandb": (1_000, 300),
            "empty": (15_000, 5_000),
        },
        rounds=2,
        numbers=GIL_NUMBERS,
    ),
    "latency": Workload(latency, {"sidestep": (150, 40)}, rounds=2, few=True),
    "throughput": Workload(
        throughput,
        {
            "sidestep": (120_000, 50_000),
            "SummaryWriter": (1_500, 500),
            "tensorboardX": (1_500, 500),
            "wandb": (5_000, 1_500),
        },
    ),
    "payloads": Workload(payloads, dict.fromkeys(_PEERS, (40, 10)), rounds=2),
    "ready": Workload(ready, {"sidestep": (0, 0)}, few=True, opened=False),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One trial to run: a workload with one system, in a process of its own."""

    workload: str
    system: str
    round: int
    size: int


def selected(rows: Collection[str]) -> list[Metric]:
    """The metrics of these rows; of all, if there are none."""
    return [metric for metric in METRICS if not rows or metric.row in rows]


def steps(
    metrics: Collection[Metric], systems: Collection[str], rounds: int | None, *, quick: bool
) -> Iterator[Step]:
    """What is to be run, in order.

    In each round all systems have their turn one after the other, beginning with another one each
    time: what the machine's other users do meanwhile hits all alike.

    Args:
        metrics: what is asked for.
        systems: with these.
        rounds: how often; None: as often as each workload says, once if quick.
        quick: take the small sizes.
    """
    wanted = {metric.workload for metric in metrics}
    for name, workload in WORKLOADS.items():
        if name not in wanted:
            continue
        taking_part = [system for system in workload.sizes if system in systems]
        for number in range(rounds or (1 if quick else workload.rounds)):
            turn = number % max(1, len(taking_part))
            for system in taking_part[turn:] + taking_part[:turn]:
                yield Step(name, system, number, workload.sizes[system][quick])


def applies(metric: Metric, step: Step) -> bool:
    """Whether the trial's report of this metric is wanted: only calls can be empty, for one."""
    is_floor = step.system == FLOOR
    return metric.workload == step.workload and (not is_floor or metric.row == step.workload)

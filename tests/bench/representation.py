"""What a `Representation` costs its caller on the CPU, and how that grows with B, N and D.

    python -m tests.bench.representation

In one process: shapes take their turn in rounds. CPU time is that of the whole process, threads
of torch included, so that it holds what neighbours do not; the wall clock is theirs as well.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Final

import torch

from sidestep.client import Representation
from sidestep.client.values import EmitContext

_SHAPES: Final[Sequence[tuple[int, ...]]] = (
    (64, 128),
    (256, 128),
    (1024, 128),
    (256, 384),
    (256, 768),
    (256, 1536),
    (16, 196, 768),
    (64, 196, 768),
    (256, 196, 768),
    (64, 49, 384),
    (64, 196, 384),
)


def cost(x: torch.Tensor, *, due: bool) -> tuple[float, float]:
    """Milliseconds of CPU and of the wall clock, from the value's making to its arrays."""
    memory = {} if due else {"spectrum_period": 0}
    began, began_cpu = time.perf_counter(), time.process_time()
    prepared = Representation(x).prepare(EmitContext(0, memory))
    assert prepared.computation is not None
    prepared.computation.at_once(prepared.arrays)
    return 1e3 * (time.process_time() - began_cpu), 1e3 * (time.perf_counter() - began)


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    batches = {shape: torch.randn(shape) for shape in _SHAPES}
    found: dict[tuple[tuple[int, ...], bool], list[tuple[float, float]]] = {}
    for _ in range(given.rounds + 1):
        for shape, x in batches.items():
            for due in (False, True):
                found.setdefault((shape, due), []).append(cost(x, due=due))
    print(f"torch {torch.__version__}, {given.threads} threads, {given.rounds} rounds: medians, ms")
    print(f"| {'shape':16} | rows used | each step: CPU | wall | with spectrum: CPU | wall |")
    print(f"|{'-' * 18}|----------:|---------------:|-----:|-------------------:|-----:|")
    for shape in _SHAPES:
        info = Representation(batches[shape]).prepare(EmitContext(0, {})).info
        rows = f"{info['images']} x {info['tokens']}"
        cells: list[float] = []
        for due in (False, True):
            kept = found[shape, due][1:]  # the first one made memory
            cells += [statistics.median(each) for each in zip(*kept, strict=True)]
        plain, wall, spectrum, spectrum_wall = cells
        print(
            f"| {shape!s:16} | {rows:>9} | {plain:14.2f} | {wall:4.1f} | {spectrum:18.2f} "
            f"| {spectrum_wall:4.1f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What logging costs the loop around it: a training step's time, and the interpreter's lock.

A call that returns early may still be paid for later, by a thread that holds the interpreter's lock
or by a process that holds the core. So here the loop itself is timed, not the call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from tests.bench.summary import quantile
from tests.bench.workloads import Metrics, Trial

BLOCK: Final = 10
"""Steps in a row with, then as many without: what the machine's other users do hits both alike."""

GIL_NUMBERS: Final = 200
"""Numbers an emit: at 200 µs an iteration that is a million a second."""

_GIL_WORK: Final = 3_000
"""Additions in an iteration: some 200 µs of bytecode that never gives the lock away by itself."""


def loop(trial: Trial) -> Metrics:
    """A small model's training steps on one thread, each logging 20 numbers; and without."""
    import torch

    trial.warm()
    train_step = _training(torch)
    emit, pool = trial.system.emitter(), trial.pool
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for block in range(2 * trial.size // BLOCK):
        logging = block % 2 == 0
        for _ in range(BLOCK):
            start = time.perf_counter()
            train_step()
            if logging:
                emit(pool[trial.steps % len(pool)], trial.steps)
                trial.steps += 1
            seconds[logging].append(time.perf_counter() - start)
    return {
        "loop.p50": quantile(sorted(seconds[True]), 0.5),
        "loop.bare.p50": quantile(sorted(seconds[False]), 0.5),
        "loop.mean": sum(seconds[True]) / len(seconds[True]),
        "loop.bare.mean": sum(seconds[False]) / len(seconds[False]),
    }


def _training(torch: Any) -> Callable[[], None]:
    """A function that does one step: forward, backward and AdamW, some milliseconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256)]
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters())
    x = torch.randn(64, 256)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), x).backward()
        optimizer.step()

    return step


def gil(trial: Trial) -> Metrics:
    """Pure Python between calls with 200 numbers: how long the same work takes, call by call."""
    trial.warm()
    emit, pool, clock = trial.system.emitter(), trial.pool, time.perf_counter_ns
    work_ns: list[int] = []
    begin = clock()
    for step in range(trial.steps, trial.steps + trial.size):
        start = clock()
        total = 0
        for number in range(_GIL_WORK):
            total += number
        work_ns.append(clock() - start)
        emit(pool[step % len(pool)], step)
    seconds = (clock() - begin) / 1e9
    trial.steps += trial.size
    ordered = sorted(work_ns)
    return {
        "gil.mean": sum(ordered) / len(ordered) / 1e9,
        "gil.p50": quantile(ordered, 0.5) / 1e9,
        "gil.p99": quantile(ordered, 0.99) / 1e9,
        "gil.max": ordered[-1] / 1e9,
        "gil.rate": trial.size * GIL_NUMBERS / seconds,
    }

"""What is done with a system to measure it: one function a workload, run in the trial's process.

Every function takes an opened system and returns its metrics in seconds, megabytes and counts. What
it logs is 20 numbers a step, from a pool of ready dictionaries, so that the caller's own work is
nobody's cost.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from tests.bench.summary import quantile
from tests.bench.systems import System

NUMBERS: Final = 20
"""A step of an ordinary trainer logs about so many."""

WARM_STEPS: Final = 20
PACE_S: Final = 0.005
STOPPED_PACE_S: Final = 0.001
LATENCY_PACE_S: Final = 0.05

Metrics = dict[str, float]


def number_pool(width: int = 64, numbers: int = NUMBERS) -> list[dict[str, float]]:
    """Dictionaries of so many `numbers`, each of which float32 holds exactly."""
    return [
        {f"train/metric_{k:02d}": row * 0.5 + k for k in range(numbers)} for row in range(width)
    ]


@dataclass(slots=True)
class Trial:
    """What a workload is given, and the count that it keeps.

    Attributes:
        system: loaded and opened, unless the workload does that.
        directory: the trial's own.
        size: steps to log, or seconds to stop for.
        steps: so many steps were logged until now: the next one's number.
        pool: step `s` logs `pool[s % len(pool)]`.
        rss_before: the process's resident memory before the system was loaded, in bytes.
    """

    system: System
    directory: Path
    size: int
    steps: int = 0
    pool: list[dict[str, Any]] = field(default_factory=number_pool)
    rss_before: int = 0

    def warm(self) -> None:
        """Log a little and let everything start."""
        emit = self.system.emitter()
        for _ in range(WARM_STEPS):
            emit(self.pool[self.steps % len(self.pool)], self.steps)
            self.steps += 1
            time.sleep(PACE_S)
        self.system.settle()
        time.sleep(0.5)

    def timed(self, calls: int, pace_s: float = 0.0, until_s: float = float("inf")) -> list[int]:
        """Log `calls` steps, one every `pace_s`, and time each call, in ns.

        A call that comes late moves all later ones: what was missed is not made up for by a burst.
        """
        emit, pool, first = self.system.emitter(), self.pool, self.steps
        clock, width = time.perf_counter_ns, len(pool)
        durations: list[int] = []
        due = time.monotonic()
        for step in range(first, first + calls):
            if pace_s:
                due = max(due + pace_s, time.monotonic())
                if due > until_s:
                    break
                time.sleep(max(0.0, due - time.monotonic()))
            values = pool[step % width]
            start = clock()
            emit(values, step)
            durations.append(clock() - start)
        self.steps = first + len(durations)
        return durations


def describe(row: str, durations_ns: list[int]) -> Metrics:
    """Mean, p50, p99 and the worst of a row's calls, in seconds."""
    ordered = sorted(durations_ns)
    return {
        f"{row}.mean": sum(ordered) / len(ordered) / 1e9,
        f"{row}.p50": quantile(ordered, 0.5) / 1e9,
        f"{row}.p99": quantile(ordered, 0.99) / 1e9,
        f"{row}.max": ordered[-1] / 1e9,
    }


def burst(trial: Trial) -> Metrics:
    """As many calls as `size` says, one after the other."""
    trial.warm()
    before = time.thread_time()
    durations = trial.timed(trial.size)
    cpu_s = (time.thread_time() - before) / len(durations)
    return describe("burst", durations) | {"burst.cpu": cpu_s}


def wide(trial: Trial) -> Metrics:
    """Calls with a thousand numbers each, one after the other."""
    trial.warm()
    return _of_row("wide", trial.timed(trial.size))


def tensors(trial: Trial) -> Metrics:
    """Calls with 20 0-d tensors each (float32, on the CPU), one after the other."""
    import torch

    trial.pool = [{tag: torch.tensor(value) for tag, value in row.items()} for row in number_pool()]
    trial.warm()
    return _of_row("tensors", trial.timed(trial.size))


def _of_row(row: str, durations_ns: list[int]) -> Metrics:
    return {key: value for key, value in describe(row, durations_ns).items() if "max" not in key}


def paced(trial: Trial) -> Metrics:
    """A call every 5 ms: between two of them others have used the caches."""
    trial.warm()
    return describe("paced", trial.timed(trial.size, PACE_S))


def stopped(trial: Trial) -> Metrics:
    """A call every ms, while all helper processes are stopped for `size` seconds."""
    trial.warm()
    helpers = trial.system.background()
    awake: list[str] = []
    for process in helpers:
        process.suspend()

    def resume() -> None:
        awake.extend(str(p) for p in helpers if p.status() != psutil.STATUS_STOPPED)
        for process in helpers:
            process.resume()

    # A system that waits for its helper would wait for ever: the timer lets it go.
    timer = threading.Timer(trial.size, resume)
    timer.start()
    until_s = time.monotonic() + trial.size
    durations = trial.timed(int(trial.size / STOPPED_PACE_S), STOPPED_PACE_S, until_s)
    timer.join()
    if awake:
        raise RuntimeError(f"helpers did not stay stopped: {awake}")
    return {key: value for key, value in describe("stopped", durations).items() if "p50" not in key}


def throughput(trial: Trial) -> Metrics:
    """As many steps as `size` says, as fast as they can be logged, until the file has them all."""
    trial.warm()
    emit, pool, width, first = trial.system.emitter(), trial.pool, len(trial.pool), trial.steps
    cpu_before = _cpu_s(trial.system)
    start = time.perf_counter()
    for step in range(first, first + trial.size):
        emit(pool[step % width], step)
    trial.steps = first + trial.size
    trial.system.complete()
    seconds = time.perf_counter() - start
    scalars = trial.size * NUMBERS
    found = {
        "throughput": scalars / seconds,
        "cpu": (_cpu_s(trial.system) - cpu_before) / scalars * 1e6,
    }
    own = psutil.Process().memory_info().rss
    found["memory.trainer"] = (own - trial.rss_before) / 1e6
    helpers = trial.system.background()
    if helpers:
        found["memory.pss"] = sum(p.memory_full_info().pss for p in helpers) / 1e6
        found["memory.rss"] = sum(p.memory_info().rss for p in helpers) / 1e6
        found["memory.peak"] = sum(_peak_rss_bytes(p.pid) for p in helpers) / 1e6
    return found


def _cpu_s(system: System) -> float:
    """CPU time of this process, its helpers, and those that have ended."""
    times = [process.cpu_times() for process in [psutil.Process(), *system.background()]]
    return float(sum(t.user + t.system + t.children_user + t.children_system for t in times))


def _peak_rss_bytes(pid: int) -> int:
    """The most memory that the process ever had; 0: it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def pace_with_jitter(steps: int, emit_one: Callable[[], None], seed: int = 0) -> None:
    """Call `emit_one` every 50 ms or so: not in step with anything that has a period of its own."""
    rng = random.Random(seed)
    for _ in range(steps):
        time.sleep(LATENCY_PACE_S * rng.uniform(0.5, 1.5))
        emit_one()


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload and how much of it.

    Attributes:
        run: measures.
        sizes: by system, for a whole run and for a quick one; a system not named is left out.
        rounds: how often it is repeated in a whole run.
        few: it logs so little that the files are checked with TensorBoard's slowest reader.
        opened: it wants a loaded and opened system; else it does that itself, or not at all.
        numbers: so many are logged a step.
    """

    run: Callable[[Trial], Metrics]
    sizes: Mapping[str, tuple[int, int]]
    rounds: int = 3
    few: bool = False
    opened: bool = True
    numbers: int = NUMBERS

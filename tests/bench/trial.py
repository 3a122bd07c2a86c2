"""The process of one trial: loads and opens a system, runs a workload, and writes what it measured.

Run by the harness as `python -m tests.bench.trial WORKLOAD SYSTEM DIRECTORY SIZE`; the report is
`DIRECTORY/report.json`.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Final, TypedDict

import psutil

from tests.bench.more_systems import ALL_SYSTEMS
from tests.bench.plan import WORKLOADS
from tests.bench.workloads import Trial, number_pool

REPORT: Final = "report.json"


class Report(TypedDict):
    """What a trial's process leaves behind.

    Attributes:
        metrics: by key.
        steps: so many steps were logged, from 0.
        finish_at_s: when it began to finish, by the machine's monotonic clock.
    """

    metrics: dict[str, float]
    steps: int
    finish_at_s: float


def run(workload_name: str, system_name: str, directory: Path, size: int) -> Report:
    """Run one trial in this process."""
    workload, system = WORKLOADS[workload_name], ALL_SYSTEMS[system_name]()
    metrics: dict[str, float] = {}
    pool, rss_before = number_pool(numbers=workload.numbers), 0
    if workload.opened:
        for module in system.loaded_before:
            importlib.import_module(module)
        rss_before = psutil.Process().memory_info().rss
        system.load()
        start = time.perf_counter()
        system.open(directory)
        metrics["open"] = time.perf_counter() - start
    trial = Trial(system, directory, size, pool=pool, rss_before=rss_before)
    metrics |= workload.run(trial)
    finish_at_s = time.monotonic()
    if workload.opened:
        system.finish()
        metrics["finish"] = time.monotonic() - finish_at_s
    return {"metrics": metrics, "steps": trial.steps, "finish_at_s": finish_at_s}


def main(argv: list[str]) -> None:
    """Run the trial that the arguments name."""
    workload, system, directory, size = argv
    report = run(workload, system, Path(directory), int(size))
    Path(directory, REPORT).write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1:])

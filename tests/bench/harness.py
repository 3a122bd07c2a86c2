"""Runs trials, each in a process and a directory of its own, and checks what they wrote.

The benchmark's process is a subreaper: a daemon that a trial leaves behind becomes its child. So a
trial is over when no process of it is left, whatever it started and however detached; the next one
has the machine for itself; and what does not leave by itself is ended, by its id, and reported.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import psutil

from tests.bench.metrics import Metric
from tests.bench.more_systems import ALL_SYSTEMS
from tests.bench.plan import WORKLOADS, Step, applies
from tests.bench.readers import check_scalars
from tests.bench.trial import REPORT, Report
from tests.bench.workloads import number_pool

_ROOT: Final = Path(__file__).resolve().parents[2]
_PR_SET_CHILD_SUBREAPER: Final = 36
_TRIAL_LIMIT_S: Final = 150.0
_LEAVE_LIMIT_S: Final = 30.0


class TrialError(Exception):
    """A trial that measured nothing that may be shown."""


@dataclass(slots=True)
class Results:
    """What all trials measured.

    Attributes:
        samples: metric key → system → round → value.
        errors: a sentence for each trial that failed.
    """

    samples: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


def run_all(
    steps: Iterable[Step],
    metrics: Iterable[Metric],
    base: Path,
    say: Callable[[str], None],
) -> Results:
    """Run the trials one after the other.

    Args:
        steps: the trials.
        metrics: what is kept of their reports.
        base: an existing directory for theirs; each is removed after its trial.
        say: takes a line of progress.
    """
    become_subreaper()
    wanted, todo, results = list(metrics), list(steps), Results()
    for index, step in enumerate(todo):
        name = f"{step.workload}, {step.system}, round {step.round + 1}"
        start = time.monotonic()
        try:
            found = run_trial(step, base / f"t{index}")
        except TrialError as error:
            results.errors.append(f"{name}: {error}")
            outcome = f"FAILED: {error}"
        else:
            for metric in wanted:
                if metric.key in found and applies(metric, step):
                    by_system = results.samples.setdefault(metric.key, {})
                    by_system.setdefault(step.system, {})[step.round] = found[metric.key]
            outcome = f"{time.monotonic() - start:.1f} s"
        say(f"[{index + 1}/{len(todo)}] {name}: {outcome}")
    return results


def become_subreaper() -> None:
    """Make orphans among this process's descendants its children."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def run_trial(step: Step, directory: Path) -> dict[str, float]:
    """Run one trial and return its metrics.

    Raises:
        TrialError: it failed, did not end, left something running, or lost data.
    """
    system = ALL_SYSTEMS[step.system]()
    directory.mkdir()
    log = directory / "output.txt"
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("SIDESTEP_", "WANDB_"))}
    environ |= system.environment(directory)
    path = [str(_ROOT), *environ.get("PYTHONPATH", "").split(os.pathsep)]
    environ["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in path if entry)
    words = [step.workload, step.system, str(directory), str(step.size)]
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.trial", *words],
                cwd=directory,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        code, ended_at_s = wait_for(process, _TRIAL_LIMIT_S, _LEAVE_LIMIT_S)
        if code != 0:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise TrialError(f"exit code {code}: {lines[-1] if lines else 'it said nothing'}")
        report: Report = json.loads((directory / REPORT).read_text())
        report["metrics"]["exit"] = ended_at_s - report["finish_at_s"]
        _check(step, directory, report["steps"])
        return report["metrics"]
    finally:
        kill_descendants()  # none is left, unless this was interrupted
        system.clean(directory)
        shutil.rmtree(directory, ignore_errors=True)


def wait_for(
    process: subprocess.Popen[bytes], limit_s: float, leave_limit_s: float
) -> tuple[int, float]:
    """Wait for a process, then for all that it left behind.

    Returns:
        Its exit code, and when it ended by the machine's monotonic clock.

    Raises:
        TrialError: one or the other took too long, and was killed.
    """
    with _Deadline(limit_s) as deadline:
        while True:
            pid, status = os.wait()  # also reaps the helpers that end before it
            if pid == process.pid:
                break
    ended_at_s = time.monotonic()
    process.returncode = os.waitstatus_to_exitcode(status)
    if deadline.passed:
        raise TrialError(f"did not end within {limit_s:g} s")
    with _Deadline(leave_limit_s) as deadline:
        try:
            while True:
                os.wait()
        except ChildProcessError:
            pass  # none is left
    if deadline.passed:
        raise TrialError(f"left processes that did not end within {leave_limit_s:g} s")
    return process.returncode, ended_at_s


class _Deadline:
    """Kills all descendants of this process when its time is up."""

    passed = False

    def __init__(self, limit_s: float) -> None:
        self._timer = threading.Timer(limit_s, self._kill)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()

    def _kill(self) -> None:
        self.passed = True
        kill_descendants()


def kill_descendants() -> None:
    """End all processes that this one started, and theirs."""
    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _check(step: Step, directory: Path, steps: int) -> None:
    """Check that the files hold all that was logged, so that no figure stands for lost data."""
    workload = WORKLOADS[step.workload]
    written = ALL_SYSTEMS[step.system]().written(directory, few=workload.few)
    if written is None:
        return
    try:
        check_scalars(written, number_pool(numbers=workload.numbers), steps)
    except Exception as error:
        raise TrialError(f"its files are not whole: {error}") from error

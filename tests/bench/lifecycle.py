"""How long an import takes, and `sidestep serve` until it is ready, is joined, and has ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil

from tests.bench.workloads import Metrics, Trial

_EXIT_LIMIT_S = 30.0


def fresh_import(trial: Trial) -> Metrics:
    """Import the library in an interpreter that has imported nothing else, or only what it must."""
    system = trial.system
    lines = [f"import {module}" for module in ("time", *system.loaded_before)]
    lines += ["start = time.perf_counter()", f"import {system.module}"]
    lines += ["print(time.perf_counter() - start)"]
    command = [sys.executable, "-c", "\n".join(lines)]
    return {"import": float(subprocess.run(command, check=True, capture_output=True).stdout)}


def ready(trial: Trial) -> Metrics:
    """Start a daemon in the foreground, connect to it, log a few steps, and stop it."""
    start = time.perf_counter()
    daemon = subprocess.Popen(
        [sys.executable, "-m", "sidestep.sidecar", "serve"], stdout=subprocess.PIPE
    )
    assert daemon.stdout is not None
    try:
        if not daemon.stdout.readline():
            raise RuntimeError(f"serve ended with {daemon.wait()} before it was ready")
        found = {"ready": time.perf_counter() - start}
        process = psutil.Process(daemon.pid)
        family = [process, *process.children(recursive=True)]
        found["ready.idle"] = sum(p.memory_info().rss for p in family) / 1e6
        found["ready.join"] = _join(trial)
        found["ready.stop"] = _stop(daemon)
    finally:
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()
        daemon.stdout.close()
    return found


def _join(trial: Trial) -> float:
    trial.system.load()
    start = time.perf_counter()
    trial.system.open(trial.directory)
    seconds = time.perf_counter() - start
    trial.warm()
    trial.system.finish()
    return seconds


def _stop(daemon: subprocess.Popen[bytes]) -> float:
    start = time.perf_counter()
    daemon.send_signal(signal.SIGTERM)
    code = daemon.wait(_EXIT_LIMIT_S)
    if code != 0:
        raise RuntimeError(f"serve ended with {code} after SIGTERM, not with 0")
    return time.perf_counter() - start

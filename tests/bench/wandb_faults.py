"""What W&B's failing costs TensorBoard: emit to event file, W&B off and failing in every way.

Each way has a daemon of its own and logs the same stream, one step of 20 numbers every 50 ms or so.
They take turns, round by round, so that what the machine's other users do hits all alike.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, Final

from sidestep import client
from tests.bench import readers
from tests.bench.delivery import Arrivals, follow_file
from tests.bench.summary import quantile
from tests.bench.workloads import number_pool, pace_with_jitter
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until
from tests.support.wandb_server import API_KEY, Fault, WandbServer, free_port

OFF: Final = "off"
STOPPED: Final = "worker hangs"
UNREACHABLE: Final = "unreachable"
WELL: Final = "works"

FAULTS: Final[Mapping[str, Fault]] = {
    "401": Fault(401),
    "429, Retry-After": Fault(429, retry_after_s=1),
    "500": Fault(500),
    "hangs in init": Fault(hang=True),
    "hangs in upload and finish": Fault(hang=True, at="upload"),
}
WAYS: Final = (OFF, WELL, UNREACHABLE, *FAULTS, STOPPED)

_RUN: Final = "bench"
_LIMIT_S: Final = 60.0

Waits = dict[str, list[int]]
"""For each way how long each step took to the event file, in ns."""


def measure(rounds: int, steps: int) -> Waits:
    """So many `rounds` of `steps` steps in each way."""
    waits: Waits = {way: [] for way in WAYS}
    for number in range(rounds):
        turn = number % len(WAYS)
        for way in WAYS[turn:] + WAYS[:turn]:
            print(f"round {number + 1} of {rounds}: W&B {way}", file=sys.stderr)
            with redirect_stdout(sys.stderr):  # the daemon's log
                waits[way] += _trial(way, steps)
    return waits


def render(waits: Waits) -> str:
    """A table: quantiles, and beside them their ratio to those with W&B off."""
    lines = [
        "emit to event file, of the same stream",
        f"{'W&B':<28}{'p50':>10}{'ratio':>8}{'p99':>10}{'ratio':>8}{'steps':>8}",
    ]
    base = [_quantile_ms(waits[OFF], q) for q in (0.5, 0.99)]
    for way in WAYS:
        line = f"{way:<28}"
        for of_off, q in zip(base, (0.5, 0.99), strict=True):
            value = _quantile_ms(waits[way], q)
            line += f"{value:>7.1f} ms{value / of_off:>8.2f}"
        lines.append(f"{line}{len(waits[way]):>8}")
    return "\n".join(lines)


def _quantile_ms(waits_ns: list[int], q: float) -> float:
    return quantile(sorted(waits_ns), q) / 1e6


def _trial(way: str, steps: int) -> list[int]:
    with WandbServer() as server, Sandbox() as sandbox, _environment(sandbox.variables()):
        if way in FAULTS:
            server.faults[_RUN] = FAULTS[way]
        url = f"http://127.0.0.1:{free_port()}" if way == UNREACHABLE else server.url
        sandbox.serve(WANDB_API_KEY=API_KEY, WANDB_BASE_URL=url)
        wandb = None if way == OFF else {"id": _RUN, "project": "p"}
        made = client.connect(_RUN, log_dir=str(sandbox.logs), autostart=False, wandb=wandb)
        try:
            return _log(made, sandbox, way, steps)
        finally:
            made.finish(5)


def _log(made: client.Client, sandbox: Sandbox, way: str, steps: int) -> list[int]:
    pool, sent_ns, arrivals, stop = number_pool(), dict[int, int](), Arrivals(), threading.Event()

    def emit() -> None:
        step = len(sent_ns)
        sent_ns[step] = time.perf_counter_ns()
        made.emit(pool[step % len(pool)], step=step)

    emit()
    (path,) = wait_until(lambda: sandbox.event_files(_RUN), _LIMIT_S, "no event file")
    follower = threading.Thread(
        target=follow_file, args=(readers.EventTail(path), arrivals, stop), daemon=True
    )
    follower.start()
    try:
        wait_until(_settled(sandbox, way), _LIMIT_S, f"W&B {way}")
        pace_with_jitter(steps, emit)
        last = len(sent_ns) - 1
        wait_until(lambda: last in arrivals.seen_ns, _LIMIT_S, "the last step in the file")
    finally:
        stop.set()
        follower.join()
    return [arrivals.seen_ns[step] - sent for step, sent in sent_ns.items() if step > 0]


def _settled(sandbox: Sandbox, way: str) -> Callable[[], Any]:
    """Whether what is to be measured has begun; a worker that shall hang is stopped by this."""

    def sinks() -> dict[str, str]:
        run = sandbox.run_status(_RUN)
        return {sink["name"]: sink["state"] for sink in run["sinks"]} if run else {}

    def ready() -> bool:
        states = sinks()
        if states.get("tensorboard") != "ok":
            return False
        if way not in (WELL, STOPPED):
            return way == OFF or "wandb" in states
        if states.get("wandb") != "ok":
            return False
        if way == STOPPED:
            for worker in sandbox.workers("wandb"):
                worker.suspend()
        return True

    return ready


@contextmanager
def _environment(variables: Mapping[str, str]) -> Generator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)

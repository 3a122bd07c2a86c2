"""How long a number takes from `emit` to a line of `sidestep tail --json` and to the event file."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import IO, Any, Final

from tests.bench import readers
from tests.bench.summary import quantile
from tests.bench.systems import RUN
from tests.bench.workloads import NUMBERS, Metrics, Trial, pace_with_jitter

_POLL_S: Final = 0.002
_START_LIMIT_S: Final = 30.0
_ARRIVAL_LIMIT_S: Final = 10.0


@dataclass(slots=True)
class Arrivals:
    """When each step was seen whole, in ns; filled by one thread, read by another."""

    seen_ns: dict[int, int] = field(default_factory=dict)
    _counts: dict[int, int] = field(default_factory=dict)

    def add(self, step: int, numbers: int) -> None:
        """So many further numbers of a step were seen."""
        count = self._counts[step] = self._counts.get(step, 0) + numbers
        if count == NUMBERS:
            self.seen_ns[step] = time.perf_counter_ns()


def latency(trial: Trial) -> Metrics:
    """Log `size` steps, one every 50 ms or so, and watch both ends."""
    trial.warm()
    tail = subprocess.Popen(
        [sys.executable, "-m", "sidestep.sidecar", "tail", RUN, "--json"], stdout=subprocess.PIPE
    )
    assert tail.stdout is not None
    in_tail, in_file, stop = Arrivals(), Arrivals(), threading.Event()
    (path,) = readers.event_files(trial.directory / "logs")
    threads = [
        threading.Thread(target=_read_tail, args=(tail.stdout, in_tail)),
        threading.Thread(target=follow_file, args=(readers.EventTail(path), in_file, stop)),
    ]
    for thread in threads:
        thread.start()
    try:
        sent_ns = _send(trial, in_tail)
        last = trial.steps - 1
        _await(lambda: last in in_tail.seen_ns, _ARRIVAL_LIMIT_S, "the last step in tail")
        _await(lambda: last in in_file.seen_ns, _ARRIVAL_LIMIT_S, "the last step in the file")
    finally:
        stop.set()
        tail.terminate()
        tail.wait()
        for thread in threads:
            thread.join()
    return _describe("tail", sent_ns, in_tail) | _describe("file", sent_ns, in_file)


def _send(trial: Trial, in_tail: Arrivals) -> dict[int, int]:
    """Log until `tail` shows something, then `size` steps whose times of departure are returned."""
    emit, sent_ns = trial.system.emitter(), dict[int, int]()

    def emit_one() -> None:
        values = trial.pool[trial.steps % len(trial.pool)]
        sent_ns[trial.steps] = time.perf_counter_ns()
        emit(values, trial.steps)
        trial.steps += 1

    def shown() -> bool:
        emit_one()
        time.sleep(0.1)
        return bool(in_tail.seen_ns)

    _await(shown, _START_LIMIT_S, "a line of tail --json")
    sent_ns.clear()
    pace_with_jitter(trial.size, emit_one)
    return sent_ns


def _await(condition: Callable[[], bool], limit_s: float, what: str) -> None:
    give_up = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > give_up:
            raise readers.MissingDataError(f"{what} was not seen within {limit_s:g} s")
        time.sleep(_POLL_S)


def _read_tail(lines: IO[bytes], arrivals: Arrivals) -> None:
    for line in lines:
        point = json.loads(line)
        if point["tag"].startswith("train/"):
            arrivals.add(point["step"], 1)


def follow_file(file: readers.EventTail, arrivals: Arrivals, stop: threading.Event) -> None:
    """Fill `arrivals` with what comes into an event file, until told to stop."""
    # By name, since its types are made at run time: no type checker knows them.
    event_type: Any = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
    while not stop.wait(_POLL_S):
        for data in file.read():
            event = event_type.FromString(data)
            tags: Iterable[str] = (value.tag for value in event.summary.value)
            arrivals.add(event.step, sum(tag.startswith("train/") for tag in tags))


def _describe(row: str, sent_ns: dict[int, int], arrivals: Arrivals) -> Metrics:
    missing = sorted(sent_ns.keys() - arrivals.seen_ns.keys())
    if missing:
        raise readers.MissingDataError(
            f"{row}: {len(missing)} steps were not seen: {missing[:5]} …"
        )
    waits = sorted(arrivals.seen_ns[step] - sent for step, sent in sent_ns.items())
    return {
        f"{row}.p50": quantile(waits, 0.5) / 1e9,
        f"{row}.p99": quantile(waits, 0.99) / 1e9,
    }

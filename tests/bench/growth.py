"""Measures how the cost of a scalar grows with clients, tags and a run's length.

`python -m tests.bench.growth --help`. CPU time, not the clock, is what is shown: it is what a
scalar costs, and others on the machine disturb it least. Each setting has a daemon and a directory
of its own; they are measured in turn, some rounds of them, and afterwards the archive must hold
each scalar once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil

from sidestep.sidecar.archive.reader import find_run
from tests.bench.emitting import RUN, Spec
from tests.bench.growth_picture import draw
from tests.bench.machine import describe_machine
from tests.bench.report import digits, table

_ROOT: Final = Path(__file__).resolve().parents[2]
_PROCESSES: Final = 4
"""Clients live in so many processes at most: two cores have no room for 256 interpreters."""

_DRAIN_S: Final = 300.0
_SETTLE_S: Final = 1.5
"""A client hears once a second at what pace it shall send."""

_MEASURED: Final = (
    "client_cpu",
    "daemon_cpu",
    "workers_cpu",
    "memory_mb",
    "pss_mb",
    "client_mb",
)
FLAT: Final = 1.2
"""A curve is flat when its dearest point costs at most so many times what its cheapest does."""


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve.

    Attributes:
        curve: "clients", "tags", "length", "ranks", "cadence" or "seldom".
        x: how many of those; for the length the scalars of the run until then.
        scalars: so many were counted for it.
        client_cpu: CPU seconds per million scalars, of the processes that emit.
        daemon_cpu: the same of the daemon.
        workers_cpu: the same of its workers.
        memory_mb: resident memory of the daemon and its workers at the end.
        pss_mb: the same, with what they share counted once.
        client_mb: what sidestep adds to the resident memory of a trainer, for each client.
    """

    curve: str
    x: int
    scalars: int
    client_cpu: float
    daemon_cpu: float
    workers_cpu: float
    memory_mb: float
    pss_mb: float
    client_mb: float

    @property
    def cpu(self) -> float:
        """CPU seconds per million scalars, of all processes."""
        return self.client_cpu + self.daemon_cpu + self.workers_cpu


@dataclass(frozen=True, slots=True)
class Setting:
    """What one daemon is given: the processes' clients, and the rows that are emitted in stages."""

    curve: str
    xs: tuple[int, ...]
    spec: Spec
    stages: tuple[int, ...]


def settings_of(curves: Sequence[str], scale: float) -> Iterator[Setting]:
    """All settings of these curves; `scale` makes them shorter."""
    rows = max(1, int(200_000 * scale))
    if "clients" in curves:
        for count in (1, 4, 16, 64, 256):
            spec = Spec(
                clients=count, world_size=count, outbox_bytes=(64 << 20) // count + (2 << 20)
            )
            yield Setting("clients", (count,), spec, (rows,))
    if "ranks" in curves:
        for count in (1, 16, 64, 256):
            outbox_bytes = (64 << 20) // count + (2 << 20)
            spec = Spec(clients=count, world_size=count, outbox_bytes=outbox_bytes, reduced=True)
            yield Setting("ranks", (count,), spec, (rows // 256 * 256,))
    for curve, per_s in (("cadence", 2.0), ("seldom", 0.1)):
        for count in (16, 64, 256) if curve in curves else ():
            # As a job does it: all ranks at the same time, and then nothing for a while.
            spec = Spec(
                clients=count,
                world_size=count,
                outbox_bytes=2 << 20,
                reduced=True,
                rows_per_s=per_s,
            )
            yield Setting(curve, (count,), spec, (count * max(2, int(20 * per_s * scale)),))
    if "tags" in curves:
        for tags in (20, 200, 2_000, 20_000, 60_000):
            yield Setting("tags", (tags,), Spec(tag_sets=tags // 20), (rows,))
    if "length" in curves:
        lengths = [int(10**exponent * scale) for exponent in (6, 6.5, 7, 7.5, 8)]
        numbers = 100
        stages = [b - a for a, b in zip([0, *lengths], lengths, strict=False)]
        spec = Spec(numbers=numbers)
        yield Setting("length", tuple(lengths), spec, tuple(n // numbers for n in stages))


class Node:
    """A daemon in a directory of its own, and the processes that emit to it."""

    def __init__(self, directory: Path, spec: Spec) -> None:
        self._directory = directory
        self._environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("SIDESTEP_")},
            "SIDESTEP_RUNTIME_DIR": str(directory / "r"),
            "SIDESTEP_STATE_DIR": str(directory / "state"),
            "SIDESTEP_LOG_DIR": str(directory / "logs"),
            "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        self._daemon = self._python("sidestep.sidecar", "serve")
        self._line(self._daemon)
        self._emitting: list[subprocess.Popen[bytes]] = []
        self.extra_mb = 0.0
        first = 0
        for share in shares(spec.clients, _PROCESSES):
            one = replace(spec, first_rank=first, clients=share)
            self._emitting.append(self._python("tests.bench.emitting", json.dumps(asdict(one))))
            first += share
        for process in self._emitting:
            self._line(process)

    def _python(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=self._directory,
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{process.args!r} ended with {process.wait()}")
        return line

    def emit(self, rows: int) -> tuple[float, float, float]:
        """Have rows emitted and written; CPU seconds of those who emit, the daemon, its workers."""
        before = self._daemon_cpu_s()
        for process, share in zip(self._emitting, shares(rows, len(self._emitting)), strict=True):
            assert process.stdin is not None
            process.stdin.write(b"%d\n" % share)
            process.stdin.flush()
        said = [json.loads(self._line(process)) for process in self._emitting]
        self.extra_mb = sum(one["extra_mb"] for one in said)
        self._drain()
        daemon_s, workers_s = (b - a for a, b in zip(before, self._daemon_cpu_s(), strict=True))
        return sum(one["cpu_s"] for one in said), daemon_s, workers_s

    def _drain(self) -> None:
        words = ["drain", "--timeout", str(_DRAIN_S)]
        command = [sys.executable, "-m", "sidestep.sidecar", *words]
        subprocess.run(command, env=self._environ, check=True, stdout=subprocess.DEVNULL)

    def _family(self) -> list[psutil.Process]:
        daemon = psutil.Process(self._daemon.pid)
        return [daemon, *daemon.children(recursive=True)]

    def _daemon_cpu_s(self) -> tuple[float, float]:
        """CPU seconds of the daemon, and of its workers, those that have ended included."""
        own, *workers = [process.cpu_times() for process in self._family()]
        ended = own.children_user + own.children_system
        return own.user + own.system, sum(t.user + t.system for t in workers) + ended

    def memory_mb(self) -> tuple[float, float]:
        """Resident memory of the daemon and its workers: the sum, and with what is shared once."""
        found = [process.memory_full_info() for process in self._family()]
        return sum(one.rss for one in found) / 1e6, sum(one.pss for one in found) / 1e6

    def written(self) -> int:
        """The scalars in the archive that were emitted, not those that the daemon adds."""
        run = find_run(str(self._directory / "logs"), RUN)
        blocks = [] if run is None else run.blocks(tags=["m[0-9]*", "rank_*"])
        return sum(block.values.size for block in blocks)

    def close(self) -> None:
        """End all processes."""
        for process in self._emitting:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
        self._daemon.send_signal(signal.SIGTERM)
        self._daemon.wait(120)


def shares(total: int, parts: int) -> list[int]:
    """`total` in at most `parts` parts that differ by one at most, none of them empty."""
    parts = min(total, parts)
    return [total // parts + (n < total % parts) for n in range(parts)]


@contextmanager
def node(base: Path, spec: Spec) -> Generator[Node]:
    """A node while it is needed."""
    directory = Path(tempfile.mkdtemp(dir=base))
    made = Node(directory, spec)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(directory)


def measure(setting: Setting, base: Path) -> Iterator[Point]:
    """The points of one setting."""
    spec, numbers = setting.spec, setting.spec.numbers
    with node(base, spec) as one:
        # Every tag set is defined, all that starts late has started, and has said so for a while.
        warm = spec.tag_sets * spec.clients
        one.emit(warm)
        time.sleep(_SETTLE_S)
        for x, rows in zip(setting.xs, setting.stages, strict=True):
            seconds = one.emit(rows)
            millions = rows * numbers / 1e6
            client, daemon, workers = (part_s / millions for part_s in seconds)
            rss_mb, pss_mb = one.memory_mb()
            yield Point(
                setting.curve,
                x,
                rows * numbers,
                client,
                daemon,
                workers,
                rss_mb,
                pss_mb,
                one.extra_mb / spec.clients,
            )
        expected = warm + sum(setting.stages)
        if spec.reduced:
            expected //= spec.clients  # a mark that a rank is missing would be one more
        found = one.written() // numbers
        if found != expected:
            raise RuntimeError(f"{setting}: {found} records were written, not {expected}")


def medians(points: Sequence[Point]) -> list[Point]:
    """One point for each (curve, x), the one with the median cost of all rounds."""
    by_place: dict[tuple[str, int], list[Point]] = {}
    for point in points:
        by_place.setdefault((point.curve, point.x), []).append(point)
    return [
        Point(
            curve,
            x,
            group[0].scalars,
            *(median(getattr(p, name) for p in group) for name in _MEASURED),
        )
        for (curve, x), group in by_place.items()
    ]


def render(points: Sequence[Point]) -> str:
    """A table, and for each curve how flat it is."""
    head = ["CPU s per million", "trainers", "daemon", "workers", "RSS MB", "PSS MB", "MB a client"]
    rows = [["curve", "x", *head]]
    for p in points:
        cells = [p.cpu, *(getattr(p, name) for name in _MEASURED)]
        rows.append([p.curve, f"{p.x:,}", *map(digits, cells)])
    lines = [table(rows), ""]
    for curve in dict.fromkeys(point.curve for point in points):
        costs = [point.cpu for point in points if point.curve == curve]
        ratio = max(costs) / min(costs)
        verdict = "flat" if ratio <= FLAT else "not flat"
        lines.append(f"{curve}: the dearest point costs {ratio:.2f} times the cheapest: {verdict}")
        parts = [p.daemon_cpu + p.workers_cpu for p in points if p.curve == curve]
        lines.append(f"  of the daemon and its workers alone: {max(parts) / min(parts):.2f} times")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=__doc__)
    parser.add_argument("--curves", default="clients,tags,length", metavar="A,B")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all points there")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the curves there")
    options = parser.parse_args(argv)
    todo = list(settings_of(options.curves.split(","), 0.1 if options.quick else 1.0))
    points: list[Point] = []
    with tempfile.TemporaryDirectory(prefix="sidestep-growth-") as base:
        machine = describe_machine(Path(base))
        for number in range(1 if options.quick else options.rounds):
            for setting in todo:
                start = time.monotonic()
                points += measure(setting, Path(base))
                took = time.monotonic() - start
                print(f"round {number + 1}, {setting.curve} {setting.xs}: {took:.0f} s", flush=True)
    shown = medians(points)
    print("\n".join(f"- {name}: {text}" for name, text in machine.items()))
    print(render(shown))
    if options.json:
        report: dict[str, Any] = {"machine": machine, "points": [asdict(p) for p in points]}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        draw(shown, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

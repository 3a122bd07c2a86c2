"""Measures a tree of daemons: two nodes that forward over TCP with CURVE to a head that writes.

`python -m tests.bench.tree --help`. The nodes live in network namespaces, so it needs root; the
head is on this side of their cables. Each case has daemons and directories of its own. CPU time is
what is shown; afterwards the head's archive must hold each number once, with its value.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sidestep.sidecar.archive.reader import find_run
from tests.bench.emitting import RUN, Spec, rows_of
from tests.bench.growth import shares
from tests.bench.machine import describe_machine
from tests.bench.report import digits, table
from tests.support.far_node import FarNode, NoFarNodeError
from tests.support.sandbox import ROOT, SIDESTEP, Sandbox

if TYPE_CHECKING:
    import psutil

_NODES: Final = 2
_PROCESSES: Final = 2
"""A node's ranks live in so many processes at most."""

_DRAIN_S: Final = 240.0
_SETTLE_S: Final = 1.5
_LATENCIES: Final = 50
_LATENCY_S: Final = 20.0


class LostError(Exception):
    """The head has not what was emitted."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is emitted through a tree.

    Attributes:
        name: for the table.
        ranks: of the job, half of them on each node.
        rows: of each rank.
        reduced: to their mean, at the head; else each rank has curves of its own.
        rows_per_s: of each rank; 0 for as many as it can.
    """

    name: str
    ranks: int
    rows: int
    reduced: bool
    rows_per_s: float = 0.0

    def spec(self, first_rank: int, clients: int) -> Spec:
        """What one process emits."""
        return Spec(
            first_rank=first_rank,
            clients=clients,
            world_size=self.ranks,
            outbox_bytes=2 << 20,
            reduced=self.reduced,
            rows_per_s=self.rows_per_s,
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """What one case has shown.

    Attributes:
        case: its name.
        ranks: of the job.
        scalars: that were emitted while it was measured.
        took_s: from the first emit until the head has written everything.
        cpu: CPU seconds by who: trainers, nodes, forwarding (the nodes' workers), head, workers
            (the head's); both nodes together.
        memory_mb: PSS of one node's daemon with its workers, and of the head's, at the end.
        latency_ms: p50 and greatest, from emits of one process's ranks until the head's event file
            has a number of them; none where ranks are reduced.
    """

    case: str
    ranks: int
    scalars: int
    took_s: float
    cpu: Mapping[str, float]
    memory_mb: tuple[float, float]
    latency_ms: tuple[float, float] | None


class Tree:
    """A head, and two nodes behind a cable each, with the processes that emit there."""

    def __init__(self, stack: ExitStack, case: Case) -> None:
        self._case = case
        self._processes: list[subprocess.Popen[bytes]] = []
        stack.callback(self._reap)  # last, when the sandboxes have ended them
        far = [stack.enter_context(FarNode(which)) for which in range(_NODES)]
        self.head = stack.enter_context(Sandbox())
        self.nodes = [stack.enter_context(Sandbox()) for _ in far]
        keys = self.head.root / "k"
        self._cli("keygen", str(keys))
        with socket.socket() as probe:
            probe.bind(("0.0.0.0", 0))
            port = probe.getsockname()[1]
        folders = [self._client_keys(keys, f"node{n}") for n in range(_NODES)]
        self.head.serve(SIDESTEP_ENDPOINT=f"tcp://0.0.0.0:{port}", SIDESTEP_KEYS=str(keys))
        self.emitting: list[subprocess.Popen[bytes]] = []
        first = 0
        for node, place, folder in zip(self.nodes, far, folders, strict=True):
            env = {
                "SIDESTEP_FORWARD_TO": f"tcp://{place.near}:{port}",
                "SIDESTEP_KEYS": str(folder),
                "SIDESTEP_LOG_DIR": str(self.head.logs),
                "PYTHONPATH": str(ROOT),
            }
            self._start(node, [*place.prefix, *SIDESTEP, "serve"], env)
            node.await_daemon()
            for share in shares(case.ranks // _NODES, _PROCESSES):
                spec = json.dumps(asdict(case.spec(first, share)))
                words = [*place.prefix, sys.executable, "-m", "tests.bench.emitting", spec]
                self.emitting.append(self._start(node, words, env))
                first += share
        for process in self.emitting:
            _line(process)

    def emit(self, rows: int) -> float:
        """Have each rank emit so many rows, and everything written; CPU seconds of the trainers."""
        ranks = self._case.ranks // len(self.emitting)
        for process in self.emitting:
            _tell(process, rows * ranks)
        seconds = sum(json.loads(_line(process))["cpu_s"] for process in self.emitting)
        for place in (*self.nodes, self.head):
            place.drain(_DRAIN_S)
        return seconds

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by who."""
        nodes = [_cpu_s(node) for node in self.nodes]
        head = _cpu_s(self.head)
        return {
            "nodes": sum(own for own, _ in nodes),
            "forwarding": sum(workers for _, workers in nodes),
            "head": head[0],
            "workers": head[1],
        }

    def memory_mb(self) -> tuple[float, float]:
        """Proportional resident memory of one node's processes, and of the head's."""
        node, head = (
            sum(process.memory_full_info().pss for process in _family(place)) / 1e6
            for place in (self.nodes[0], self.head)
        )
        return node, head

    def latencies_ms(self, many: int) -> list[float]:
        """From an emit of the first process's ranks until a number of it is in the event file."""
        process, found = self.emitting[0], list[float]()
        together = self._case.ranks // len(self.emitting)
        for _ in range(many):
            (file,) = self.head.event_files(RUN)
            size, sent_s = file.stat().st_size, time.monotonic()
            _tell(process, together)
            while not _has_number(file, size):
                if time.monotonic() - sent_s > _LATENCY_S:
                    raise LostError(f"no number in {file} after {_LATENCY_S:g} s")
                time.sleep(0.002)
            found.append(1e3 * (time.monotonic() - sent_s))
            _line(process)
        return found

    def finish(self) -> None:
        """The ranks leave."""
        for process in self.emitting:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(120)
        for place in (*self.nodes, self.head):
            place.drain(_DRAIN_S)

    def _start(
        self, node: Sandbox, words: Sequence[str], env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        with (node.root / "started.log").open("ab") as log:
            pipe = subprocess.PIPE
            self._processes.append(
                subprocess.Popen(
                    words, cwd=node.work, env=node.env(**env), stdin=pipe, stdout=pipe, stderr=log
                )
            )
        return self._processes[-1]

    def _reap(self) -> None:
        for process in self._processes:
            process.wait(30)

    def _client_keys(self, keys: Path, name: str) -> Path:
        self._cli("keygen", str(keys), "--client", name)
        return Path(shutil.move(keys / "trainers" / name, self.head.root / f"k-{name}"))

    def _cli(self, *words: str) -> None:
        done = self.head.cli(*words)
        if done.returncode:
            raise RuntimeError(f"{words}: {done.stderr}")


def check(logs: Path, case: Case, rows: Sequence[int]) -> int:
    """See that the archive has each number once; how many it has.

    Args:
        logs: the head's.
        case: what was emitted.
        rows: how many of each rank.

    Raises:
        LostError: it has others.
    """
    run = find_run(str(logs), RUN)
    seen: dict[str, list[int]] = {}
    values = rows_of(Spec())[0]
    for block in () if run is None else run.blocks(tags=["m[0-9]*", "rank_*/m[0-9]*"]):
        for column, tag in enumerate(block.tags):
            seen.setdefault(tag, []).extend(block.steps.tolist())
            expected = values.get(tag.partition("/")[2] if tag.startswith("rank_") else tag)
            if expected is None or not np.all(block.values[:, column] == expected):
                raise LostError(f"{tag} has other values, or is marked as partial")
    tags = len(values) * (1 if case.reduced else case.ranks)
    if len(seen) != tags:
        raise LostError(f"{len(seen)} tags, not {tags}")
    for tag, steps in seen.items():
        wanted = rows[int(tag.partition("/")[0][5:]) if tag.startswith("rank_") else 0]
        if len(steps) != wanted or len(set(steps)) != wanted:
            raise LostError(f"{tag}: {len(steps)} numbers, {len(set(steps))} steps, not {wanted}")
    return sum(map(len, seen.values()))


def measure(case: Case) -> Figures:
    """One case, from an empty tree to its figures."""
    with ExitStack() as stack:
        tree = Tree(stack, case)
        tree.emit(1)  # every tag set is defined, and all that starts late has started
        time.sleep(_SETTLE_S)
        before, start_s = tree.cpu_s(), time.monotonic()
        trainers_s = tree.emit(case.rows)
        took_s = time.monotonic() - start_s
        cpu = {who: end - before[who] for who, end in tree.cpu_s().items()}
        memory_mb = tree.memory_mb()
        latency_ms: tuple[float, float] | None = None
        if not case.reduced:
            found = sorted(tree.latencies_ms(_LATENCIES))
            latency_ms = found[len(found) // 2], found[-1]
        tree.finish()
        rows = [case.rows + 1] * case.ranks
        if latency_ms:
            together = case.ranks // len(tree.emitting)
            rows[:together] = [case.rows + 1 + _LATENCIES] * together
        check(tree.head.logs, case, rows)
    return Figures(
        case.name,
        case.ranks,
        case.ranks * case.rows * len(rows_of(Spec())[0]),
        took_s,
        {"trainers": trainers_s, **cpu},
        memory_mb,
        latency_ms,
    )


def render(found: Sequence[Figures]) -> str:
    """A table: CPU seconds per million scalars, and what is not."""
    parts = ["trainers", "nodes", "forwarding", "head", "workers"]
    rows = [["case", "ranks", "scalars/s", "CPU s/M", *parts, "node MB", "head MB", "ms p50, max"]]
    for one in found:
        millions = one.scalars / 1e6
        costs = [sum(one.cpu.values()), *(one.cpu[part] for part in parts)]
        latency = ", ".join(map(digits, one.latency_ms)) if one.latency_ms else ""
        rows.append(
            [
                one.case,
                str(one.ranks),
                f"{one.scalars / one.took_s:,.0f}",
                *(digits(cost / millions) for cost in costs),
                *map(digits, one.memory_mb),
                latency,
            ]
        )
    return table(rows)


def cases(ranks: int, scale: float) -> Iterator[Case]:
    """All that is measured with so many ranks."""
    rows = max(2, int(100_000 * scale) // ranks)
    yield Case("all", ranks, rows, reduced=False)
    yield Case("mean", ranks, rows, reduced=True)
    yield Case("mean, 2 a second", ranks, max(2, int(40 * scale)), reduced=True, rows_per_s=2.0)


def main(argv: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tree", description=__doc__)
    parser.add_argument("--ranks", default="16,64", metavar="N,M", help="even numbers")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(argv)
    counts = [int(word) for word in options.ranks.split(",")]
    if any(count < _NODES or count % (_NODES * _PROCESSES) for count in counts):
        parser.error(f"--ranks: multiples of {_NODES * _PROCESSES}")
    machine = describe_machine(Path(tempfile.gettempdir()))
    found: list[Figures] = []
    try:
        for count in counts:
            for case in cases(count, 0.1 if options.quick else 1.0):
                said = StringIO()
                try:
                    with redirect_stdout(said):  # sandboxes show their logs at their end
                        figures = measure(case)
                except Exception:
                    print(said.getvalue(), file=sys.stderr)
                    raise
                found.append(figures)
                print(f"{case.ranks} ranks, {case.name}: nothing lost", flush=True)
    except NoFarNodeError as error:
        print(f"no network namespace: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"- {name}: {text}" for name, text in machine.items()))
    print(render(found))
    if options.json:
        report: dict[str, Any] = {"machine": machine, "figures": [asdict(one) for one in found]}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _family(place: Sandbox) -> list[psutil.Process]:
    (daemon,) = place.daemons()
    return [daemon, *daemon.children(recursive=True)]


def _cpu_s(place: Sandbox) -> tuple[float, float]:
    """CPU seconds of a daemon, and of its workers, those that have ended included."""
    own, *workers = [process.cpu_times() for process in _family(place)]
    ended = own.children_user + own.children_system
    return own.user + own.system, sum(t.user + t.system for t in workers) + ended


def _has_number(file: Path, after: int) -> bool:
    with file.open("rb") as data:
        data.seek(after)
        return b"m0000/" in data.read()


def _tell(process: subprocess.Popen[bytes], rows: int) -> None:
    assert process.stdin is not None
    process.stdin.write(b"%d\n" % rows)
    process.stdin.flush()


def _line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with {process.wait()}")
    return line


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

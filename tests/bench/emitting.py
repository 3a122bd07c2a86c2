"""A process with some clients of one run, which emits so many rows each time that it is told to.

Run by `growth` as `python -m tests.bench.emitting SPEC`, SPEC a JSON object of `Spec`'s fields. It
prints ``ready``, takes a number of rows a line on its standard input, emits them in turn over its
clients and tag sets, prints ``{"cpu_s": ..., "extra_mb": ...}`` when the daemon has them all, and
finishes at the end of file. `extra_mb` is what sidestep and its clients have added to the resident
memory of the process, the touched part of the outboxes included.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RUN: Final = "growth"
_FLUSH_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Spec:
    """What a process emits.

    Attributes:
        first_rank: of its clients.
        clients: how many.
        world_size: how many there are in all processes.
        tag_sets: distinct tuples of tags, of each client.
        numbers: tags in one of them, and scalars in a row.
        outbox_bytes: of each client.
        reduced: the clients are the ranks of a job that emit the same steps, reduced to their mean.
        rows_per_s: of each client; 0 for as many as it can.
    """

    first_rank: int = 0
    clients: int = 1
    world_size: int = 1
    tag_sets: int = 1
    numbers: int = 20
    outbox_bytes: int = 64 << 20
    reduced: bool = False
    rows_per_s: float = 0.0


def rows_of(spec: Spec) -> list[dict[str, float]]:
    """One row for each tag set."""
    return [
        {f"m{n:04d}/{k:03d}": n + k * 0.5 for k in range(spec.numbers)}
        for n in range(spec.tag_sets)
    ]


def resident_bytes() -> int:
    """The resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main(argv: list[str]) -> None:
    """Serve the numbers on standard input."""
    spec = Spec(**json.loads(argv[0]))
    rows, step = rows_of(spec), 0
    without = resident_bytes()
    from sidestep import client  # counts as what it adds

    connected = [
        client.connect(
            RUN,
            rank=rank,
            world_size=spec.world_size,
            ranks="all" if spec.world_size > 1 and not spec.reduced else "zero",
            autostart=False,
            on_full="block",
            outbox_bytes=spec.outbox_bytes,
        )
        for rank in range(spec.first_rank, spec.first_rank + spec.clients)
    ]
    emits = [one.emit for one in connected]
    print("ready", flush=True)
    for line in sys.stdin:
        before, start_s = time.process_time(), time.monotonic()
        for number in range(int(line)):
            if spec.rows_per_s and number % len(emits) == 0:
                due_s = start_s + number // len(emits) / spec.rows_per_s
                time.sleep(max(0.0, due_s - time.monotonic()))
            emit, turn = emits[step % len(emits)], step // len(emits)
            if spec.reduced:  # all ranks say the same steps
                emit(rows[0], turn, reduce="mean")
            else:
                emit(rows[turn % len(rows)], step)
            step += 1
        if not all(one.flush(_FLUSH_S) for one in connected):
            raise SystemExit(f"not durable within {_FLUSH_S:g} s: {connected[0].stats()}")
        cpu_s = time.process_time() - before
        extra_mb = (resident_bytes() - without) / 1e6
        print(json.dumps({"cpu_s": cpu_s, "extra_mb": extra_mb}), flush=True)
    for one in connected:
        one.finish()


if __name__ == "__main__":
    main(sys.argv[1:])

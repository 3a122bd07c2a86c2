"""A trainer process of a chaos run: emits its part's stream until it is told to end, or is killed.

python -m tests.chaos.runner.trainer SLOT ATTEMPT RECORD FINISH_S PART     (a `Part` as JSON)
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.chaos.runner.part import (
    ENDS,
    HISTOGRAM,
    IMAGE,
    MAX_EMITS,
    MOMENTS,
    TEXT,
    Part,
    prefix as prefix_of,
    row,
    salt_of,
)
from tests.support.trainer import CONNECTED, FINISHED, Record

HUNG_CHILD = 86
"""Exit code of a trainer one of whose forked children did not end."""

_CHILD_S = 30.0


def main(slot: int, attempt: int, path: str, finish_s: float, part: Part) -> None:
    """Emit, note, obey."""
    record = Record(path, MAX_EMITS)
    made: list[Any] = []
    mine = os.getpid()

    def write_stats() -> None:
        if made and os.getpid() == mine:
            draft = Path(f"{path}.draft")
            draft.write_text(json.dumps(asdict(made[0].stats())))
            draft.rename(f"{path}.json")

    # Before sidestep's own, so that it runs after it: the books are those of the end.
    atexit.register(write_stats)
    from sidestep import client

    log_dir = Path(os.environ["SIDESTEP_LOG_DIR"]).parent / part.logs
    made.append(
        client.connect(
            part.run, log_dir=str(log_dir), outbox_bytes=part.outbox_bytes, on_full=part.on_full
        )
    )
    record["state"] = CONNECTED
    _emit_all(part, prefix_of(slot, attempt), salt_of(slot, attempt), record, made[0])
    end = ENDS[record["release"] - 1]
    if end == "abort":
        os._exit(0)
    if end == "raise":
        raise RuntimeError("training went wrong, as the plan wants it")
    if end == "exit":
        sys.exit(3)
    if end == "finish":
        made[0].finish(finish_s)
        record["state"] = FINISHED


def _emit_all(part: Part, prefix: str, salt: int, record: Record, client: Any) -> None:
    tags = [f"{prefix}/v{j}" for j in range(part.tags)]
    clock, cpu_clock = time.perf_counter_ns, time.thread_time_ns
    for e in range(MAX_EMITS):
        if record["release"]:
            return
        values = (
            {f"{prefix}/{part.value}": _value(part, e)}
            if part.is_value(e)
            else dict(zip(tags, row(salt, e, part.tags), strict=True))
        )
        record["begun"] = e + 1
        cpu, began = cpu_clock(), clock()
        client.emit(values, step=e)
        record.note(e, clock() - began, cpu_clock() - cpu)
        record["returned"] = e + 1
        if part.fork_every and e % part.fork_every == part.fork_every - 1:
            _fork(client, e)
        if e % part.burst == part.burst - 1:
            time.sleep(part.pause_s)
    while not record["release"]:
        time.sleep(0.01)


def _value(part: Part, e: int) -> Any:
    import numpy as np

    from sidestep import client

    noise = np.random.default_rng(e)
    if part.value == IMAGE:
        return client.Image(noise.integers(0, 255, (3, 24, 24), np.uint8))
    if part.value == TEXT:
        return client.Text(f"step {e} " * 500)
    if part.value == HISTOGRAM:
        return client.Histogram(noise.standard_normal(2000).astype(np.float32))
    return _moments(noise.standard_normal((16, 4, 8)))


def _moments(x: Any) -> Any:
    """What `client.Representation` sends, without torch."""
    import numpy as np

    from sidestep.client.values import Prepared, Value
    from tests.support.moments import moments_value

    made = moments_value(x)

    class Moments(Value):
        kind = MOMENTS

        def prepare(self, context: Any) -> Prepared:
            arrays = [
                np.frombuffer(array.data, "<f4").reshape(array.shape) for array in made.arrays
            ]
            return Prepared(MOMENTS, made.info, arrays)

    return Moments()


def _fork(client: Any, e: int) -> None:
    """A child that emits, as a DataLoader's worker might, and ends in one way or the other."""
    child = os.fork()
    if not child:
        client.emit({"child": 1.0}, step=e)
        client.flush(0.1)
        if e % 2:
            client.finish(0.1)
        os._exit(0)
    deadline = time.monotonic() + _CHILD_S
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os._exit(HUNG_CHILD)
        time.sleep(0.001)


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        int(sys.argv[2]),
        sys.argv[3],
        float(sys.argv[4]),
        Part(**json.loads(sys.argv[5])),
    )

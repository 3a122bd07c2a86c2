"""A trainer that emits a stream known in advance and writes down each emit that returned.

    python -m tests.support.trainer PLAN     (a `Plan` as JSON)

What it writes down lies in a file that is mapped into memory: a SIGKILL takes nothing of it. The
test maps the same file (`Record`), sees how far the trainer is, and lets it go on or end.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_WORDS = ("state", "begun", "returned", "limit", "release", "connect_ns")
_HEAD = len(_WORDS)
_NO_LIMIT = 1 << 62

CONNECTED, EMITTED, FINISHED = 1, 2, 3
"""Values of `Record.state`."""


@dataclass(frozen=True)
class Plan:
    """What a trainer does.

    Attributes:
        record: path of the file that it writes down its progress in.
        run: the run's name.
        emits: how many emits.
        first_step: the step of the first of them.
        tags: how many numbers each of them has.
        seed: what the numbers are made of.
        interval_s: seconds from one emit to the next; 0 for a burst.
        text_every: after so many emits, another one with a large text.
        text_bytes: how large.
        end: after the last emit: ``finish``, ``return`` (without a word), ``raise``, ``exit``
            (``sys.exit(3)``), ``eat`` (all the memory there is), or ``wait`` (until it is killed).
        finish_timeout_s: what `finish` is given.
        connect: further arguments of `connect`.
        stand_in: do not emit; do work of the same kind and length instead.
    """

    record: str
    run: str = "run"
    emits: int = 1000
    first_step: int = 0
    tags: int = 20
    seed: int = 0
    interval_s: float = 0.0
    text_every: int = 0
    text_bytes: int = 50_000
    end: str = "finish"
    finish_timeout_s: float = 30.0
    connect: dict[str, Any] = field(default_factory=dict)
    stand_in: bool = False

    def values(self, i: int) -> dict[str, float]:
        """The numbers of emit `i`: each differs from all others, and few fit into a float32."""
        base = (self.seed * 1_000_003 + i) * 8191
        return {f"train/v{j}": ((base + j * 131) % 16_777_213) / 997.0 for j in range(self.tags)}

    def rows(self, emits: int) -> Iterator[tuple[str, int, float]]:
        """Tag, step and value of all numbers of the first `emits` emits."""
        for i in range(emits):
            for tag, value in self.values(i).items():
                yield tag, self.first_step + i, value

    def texts(self, emits: int) -> int:
        """How many texts the first `emits` emits bring with them."""
        return emits // self.text_every if self.text_every else 0


class Record:
    """The file that trainer and test share: how far the trainer is, and how long each emit took.

    Attributes:
        words: by name, see `_WORDS`.
    """

    def __init__(self, path: str, emits: int) -> None:
        size = 8 * (_HEAD + 2 * emits)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("q")
        self._emits = emits

    def __getitem__(self, name: str) -> int:
        return self._words[_WORDS.index(name)]

    def __setitem__(self, name: str, value: int) -> None:
        self._words[_WORDS.index(name)] = value

    def note(self, i: int, wall_ns: int, cpu_ns: int) -> None:
        """Emit `i` has returned."""
        self._words[_HEAD + 2 * i] = wall_ns
        self._words[_HEAD + 2 * i + 1] = cpu_ns

    def durations_ns(self, first: int = 0, last: int | None = None) -> list[tuple[int, int]]:
        """Wall and CPU time of each emit from `first` on to before `last`."""
        span = range(first, self["returned"] if last is None else last)
        return [(self._words[_HEAD + 2 * i], self._words[_HEAD + 2 * i + 1]) for i in span]

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._map.close()


def main(plan: Plan) -> None:
    """Train, so to speak."""
    from sidestep import client

    record = Record(plan.record, plan.emits)
    began = time.perf_counter_ns()
    made = client.connect(plan.run, log_dir=None, **plan.connect)
    record["connect_ns"] = time.perf_counter_ns() - began
    record["state"] = CONNECTED
    _emit_all(plan, record, client)
    Path(f"{plan.record}.emitted.json").write_text(json.dumps(asdict(made.stats())))
    record["state"] = EMITTED
    match plan.end:
        case "raise":
            raise RuntimeError("training went wrong, as the test wants it")
        case "exit":
            sys.exit(3)
        case "eat":
            eaten: list[bytearray] = []
            while True:
                eaten.append(bytearray(os.urandom(1 << 20) * 8))
        case "wait":
            while not record["release"]:
                time.sleep(0.01)
        case "return":
            return
    began = time.perf_counter_ns()
    done = made.finish(plan.finish_timeout_s)
    took_s = (time.perf_counter_ns() - began) / 1e9
    result = {"finish": done, "finish_s": took_s, **asdict(made.stats())}
    Path(f"{plan.record}.json").write_text(json.dumps(result))
    record["state"] = FINISHED


def _emit_all(plan: Plan, record: Record, client: Any) -> None:
    emit = _stand_in if plan.stand_in else client.emit
    text = "x" * plan.text_bytes
    clock, cpu_clock = time.perf_counter_ns, time.thread_time_ns
    due = time.perf_counter()
    for i in range(plan.emits):
        values = plan.values(i)
        while i >= (record["limit"] or _NO_LIMIT):
            time.sleep(0.001)
        record["begun"] = i + 1
        cpu, began = cpu_clock(), clock()
        emit(values, step=plan.first_step + i)
        ended = clock()
        record.note(i, ended - began, cpu_clock() - cpu)
        record["returned"] = i + 1
        if plan.text_every and (i + 1) % plan.text_every == 0:
            client.emit({"note": client.Text(text)}, step=plan.first_step + i)
        if plan.interval_s:
            due = max(due + plan.interval_s, time.perf_counter() - 0.1)
            time.sleep(max(0.0, due - time.perf_counter()))


_PACK = struct.Struct("<20d")
_BUFFER = bytearray(_PACK.size)


def _stand_in(values: dict[str, float], step: int) -> None:
    """About what an emit does, without anything of sidestep's: the machine's own delays."""
    row = [*values.values(), *[0.0] * 20][:20]
    for _ in range(4):
        tuple(values)
        _PACK.pack_into(_BUFFER, 0, *row)


if __name__ == "__main__":
    main(Plan(**json.loads(sys.argv[1])))

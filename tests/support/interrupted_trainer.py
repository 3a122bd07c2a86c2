"""A trainer that emits from wherever Python runs code: threads, a signal handler, finalizers, exit.

It prints one JSON object before it ends: how many emits each place has made until then. What the
interpreter's exit makes afterwards goes to tags that begin with ``exit/``.
"""

from __future__ import annotations

import atexit
import gc
import itertools
import json
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from types import FrameType
from typing import Any

from sidestep import client

THREADS = 3
EMITS = 3000
MEANWHILE_S = 0.0005

numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)
"""Of each place; taking the next one is a single operation, also in a handler in a handler."""


def emit(place: str, text: bool = False) -> None:
    """The next number of a place, each of which has its own."""
    n = next(numbers[place])
    client.emit({place: client.Text("x" * 100) if text else float(n)}, step=n)


class Cycle:
    """Its finalizer emits, when the collector comes by: in the middle of anything."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        emit("finalizer")


class Late:
    """Its finalizer emits while the interpreter takes its modules apart."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.itself = self

    def __del__(self, emit: Any = client.emit) -> None:
        for step in range(3):
            emit({self.place: float(step)}, step=step)
            emit({self.place + "/text": "no value"}, step=step)


def meanwhile() -> None:
    """Emit from this thread, from others, from a signal's handler and from finalizers."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        emit("handler")

    def working(number: int) -> None:
        for n in range(EMITS):
            emit(f"thread/{number}", text=n % 100 == 99)
            if n % 20 == 0:
                Cycle()
                gc.collect(0)

    for place in ("handler", "finalizer"):
        assert numbers[place]  # made here: two threads at once would make two
    signal.signal(signal.SIGALRM, on_signal)
    gc.disable()
    signal.setitimer(signal.ITIMER_REAL, MEANWHILE_S, MEANWHILE_S)
    threads = [threading.Thread(target=working, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for n in range(EMITS):
        emit("main", text=n % 100 == 99)
    for thread in threads:
        thread.join()
    signal.setitimer(signal.ITIMER_REAL, 0)


def never_ending() -> None:
    """Emit until the interpreter takes the thread away."""
    while True:
        emit("exit/daemon-thread")


def main(end: str) -> None:
    """Emit from everywhere, and end as it is said."""
    atexit.register(lambda: emit("exit/after-finish"))
    client.connect("everywhere", log_dir=None)
    atexit.register(lambda: emit("exit/before-finish"))
    meanwhile()
    places = [place for place in list(numbers) if not place.startswith("exit/")]
    told = {place: next(numbers[place]) for place in places}
    stats = client.stats()
    told["balance"] = stats.emitted - stats.acked - stats.held - stats.dropped
    print(json.dumps(told), flush=True)

    threading.Thread(target=never_ending, daemon=True).start()
    globals()["late"] = Late("exit/global")
    setattr(sys, "late", Late("exit/sys"))  # noqa: B010  # no module has such a name
    if end == "raise":
        raise RuntimeError("training went wrong, as the test wants it")
    if end == "exit":
        sys.exit(3)


if __name__ == "__main__":
    main(sys.argv[1])

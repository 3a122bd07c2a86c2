"""A trainer that forks at any moment: DataLoader workers and plain forks, while threads emit.

Arguments: how many plain forks, and how many epochs of the DataLoader. It prints one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

EMITTERS = 2
FORKERS = 3
WORKERS = 2
SAMPLES = 16
EMITS_OF_A_CHILD = 3
_HANGS_S = 120


def main(forks: int, epochs: int) -> None:
    """Emit in threads, fork in others, load data in one more."""
    from sidestep import client

    made = client.connect("forks", log_dir=None)
    stop = threading.Event()
    emits = [0] * EMITTERS
    seen: dict[str, Any] = {"codes": [], "samples": []}

    def emitting(number: int) -> None:
        while not stop.is_set():
            n = emits[number]
            client.emit({f"thread/{number}": float(n)}, step=n)
            if n % 50 == 0:
                client.emit({f"note/{number}": client.Text("x" * 5000)}, step=n)
            emits[number] = n + 1
            stop.wait(0.0002)

    def forking(count: int) -> None:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                _child(client)
            seen["codes"].append(os.waitpid(pid, 0)[1])

    emitters = [threading.Thread(target=emitting, args=(i,)) for i in range(EMITTERS)]
    forkers = [
        threading.Thread(target=forking, args=(len(range(i, forks, FORKERS)),))
        for i in range(FORKERS)
    ]
    loader = threading.Thread(target=lambda: seen["samples"].extend(_load(client, epochs)))
    workers = [*emitters, *forkers, loader]
    for thread in workers:
        thread.start()
    for thread in [*forkers, loader]:
        thread.join()
    stop.set()
    for thread in emitters:
        thread.join()
    done = made.finish(60)
    print(json.dumps({"finish": done, "emits": emits, **seen, **asdict(made.stats())}))


def _child(client: Any) -> None:
    """What a forked child may do: all of it counts, and nothing waits."""
    code = 1
    try:
        signal.alarm(_HANGS_S)  # a deadlock ends here, and is seen
        for step in range(EMITS_OF_A_CHILD):
            client.emit({"thread/0": -1.0, "child": 1.0}, step=step)
        rejected = 2 * EMITS_OF_A_CHILD
        well = client.stats() == client.Stats(rejected=rejected)
        code = 0 if well and not client.flush(1) and not client.finish(1) else 2
    finally:
        os._exit(code)


def _load(client: Any, epochs: int) -> list[int]:
    """What each worker's client has rejected after each sample, as the workers say it."""
    from torch.utils.data import DataLoader, Dataset

    class Samples(Dataset[int]):
        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, index: int) -> int:
            client.emit({"sample": float(index)}, step=index)
            rejected: int = client.stats().rejected
            return rejected

    collate: Callable[[list[int]], list[int]] = list
    found: list[int] = []
    for _ in range(epochs):
        loader = DataLoader(
            Samples(),
            num_workers=WORKERS,
            collate_fn=collate,
            batch_size=SAMPLES // WORKERS,
            multiprocessing_context="fork",
            timeout=_HANGS_S,
        )
        for batch in loader:
            found += batch
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

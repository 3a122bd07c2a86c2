"""A job of several ranks as torchrun starts and restarts it: goes on from a checkpoint.

Arguments: a folder, how many steps, the step from which the second attempt goes on, and the step
at which the last rank of the first attempt kills itself, before it says anything of that step.
The ranks keep step, as those do that reduce gradients: nobody begins a step before all have
emitted the one before it; and the last rank dies when the others have emitted its last step.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt


def main(folder: Path, steps: int, checkpoint: int, fatal: int) -> None:
    """One rank, from its checkpoint on."""
    from sidestep import client

    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    client.connect("elastic", log_dir=None, wandb=json.loads(os.environ["ELASTIC_WANDB"]))
    others = [r for r in range(ranks) if r != rank]
    first = checkpoint if attempt else 0
    for step in range(first, steps):
        if step > first:
            await_notes(folder / f"{attempt}-{r}-{step - 1}" for r in others)
        if (attempt, rank, step) == (0, ranks - 1, fatal):
            await_notes(folder / f"{attempt}-{r}-{step}" for r in others)
            os.kill(os.getpid(), signal.SIGKILL)
        client.emit({"train/loss": value(attempt, step, rank)}, step=step, reduce="mean")
        client.emit({"train/lr": 0.5}, step=step)
        numbers = client.Histogram(sample(attempt, step, rank), bins=4)
        client.emit({"train/sample": numbers}, step=step, reduce="sum")
        (folder / f"{attempt}-{rank}-{step}").touch()


def await_notes(notes: Iterable[Path]) -> None:
    """Wait until all of them are there; torchrun ends who waits for the dead."""
    for note in notes:
        while not note.exists():
            time.sleep(0.002)


def value(attempt: int, step: int, rank: int) -> float:
    """The loss of a rank at a step of an attempt."""
    return step + attempt / 8 + rank / 10


def sample(attempt: int, step: int, rank: int) -> npt.NDArray[np.float64]:
    """Numbers of which a histogram is made; of another count in each attempt."""
    return np.random.default_rng(step).normal(rank, 1.0, 20 + attempt)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))

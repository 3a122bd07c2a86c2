"""A trainer as torchrun starts and restarts it: goes on from a checkpoint, dies as it is told.

Arguments: a checkpoint's path, how many steps, and for each attempt the step after which it ends
itself with a signal, as ``137:SIGKILL``; ``slow`` is: take 10 ms a step; ``deaf``: and do not heed
SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

SAVE_EVERY = 50


def main(checkpoint: Path, steps: int, ends: list[str]) -> None:
    """Train from the checkpoint on."""
    from sidestep import client

    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    end = ends[attempt] if attempt < len(ends) else ""
    if end == "deaf":
        signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    client.connect("elastic", log_dir=None)
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(first, steps):
        client.emit({"train/loss": value(attempt, step), "train/lr": 0.5}, step=step)
        checkpoint.with_suffix(".emitted").write_text(str(step))
        if end == f"{step}:SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        if end == f"{step}:SIGSEGV":
            os.kill(os.getpid(), signal.SIGSEGV)
        if (step + 1) % SAVE_EVERY == 0:
            checkpoint.write_text(str(step + 1))
        if end in ("deaf", "slow"):
            time.sleep(0.01)


def value(attempt: int, step: int) -> float:
    """The loss at a step of an attempt."""
    return step + attempt / 8


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])

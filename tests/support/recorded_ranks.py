"""Runs an example as one rank under torchrun, and keeps what it emits; ends a rank as it is told.

Arguments: a folder; a rank and a step at which it is killed before it says anything of that step,
as ``2:6``, or ``-``; the script and its arguments. What a rank has emitted of a tag at a step
lies in the folder when that `emit` has returned.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sidestep import client

LAST_TAG = "train/target"
"""Of a step that all other ranks have emitted, the last one."""


class Kept(client.Representation):
    """A representation that can be read back."""

    def __init__(self, x: Any, **named: Any) -> None:
        super().__init__(x, **named)
        pair = {"paired": named["paired"].detach()} if "paired" in named else {}
        self.tensors = {"x": x.detach(), **pair}


def place(folder: Path, tag: str, step: int, rank: int) -> Path:
    """Where a rank's part is."""
    return folder / f"{tag.replace('/', '.')}-{step}-{rank}.npz"


def main(folder: Path, doomed: str, script: str, arguments: list[str]) -> None:
    """Run the script with an `emit` that keeps."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    emit = client.emit

    def keeping(values: Mapping[str, Any], step: int, **named: Any) -> None:
        if doomed == f"{rank}:{step}":
            others = [place(folder, LAST_TAG, step, r) for r in range(ranks) if r != rank]
            while not all(path.exists() for path in others):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        emit(values, step, **named)
        for tag, value in values.items():
            found = value.tensors if isinstance(value, Kept) else {"x": value}
            path = place(folder, tag, step, rank)
            part = path.with_suffix(".part.npz")
            arrays = {name: np.asarray(one) for name, one in found.items()}
            np.savez(part, allow_pickle=False, **arrays)
            part.rename(path)

    client.emit, client.Representation = keeping, Kept  # type: ignore[misc]
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])

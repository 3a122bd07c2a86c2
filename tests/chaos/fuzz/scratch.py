"""A folder in memory for the files of one process's inputs, removed when the process ends."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

WHERE = "FUZZ_SCRATCH"
"""The variable that says where: libFuzzer ends a process without its exit hooks."""


def parent() -> str | None:
    """Where there is tmpfs: a target makes thousands of files."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@cache
def folder() -> Path:
    """The folder."""
    made = Path(tempfile.mkdtemp(prefix="sst-fuzz-", dir=os.environ.get(WHERE, parent())))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def empty(name: str) -> Path:
    """A folder of this name with nothing in it."""
    path = folder() / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path

"""Small file systems in memory, as containers have them, for a test or for one process of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_tmpfs(path: Path, size: str) -> Generator[Path]:
    """A tmpfs of `size` ("24m") at `path`, for all; skips where none can be mounted."""
    path.mkdir(mode=0o700, exist_ok=True)
    _try(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(path)])
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def within_small_tmpfs(**sizes: str) -> list[str]:
    """What to put before a command: it alone then sees tmpfs of these sizes at these paths."""
    _try(["unshare", "--mount", "true"])
    mounts = [
        f"mount -t tmpfs -o size={size},mode=1777 tmpfs {path}" for path, size in sizes.items()
    ]
    return ["unshare", "--mount", "sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh"]


def fill(path: Path) -> int:
    """Write a file into `path` until nothing more goes in; its bytes."""
    fd = os.open(path / "filler", os.O_WRONLY | os.O_CREAT, 0o600)
    written = 0
    try:
        for piece in (1 << 20, 4096, 1):
            while True:
                try:
                    written += os.write(fd, bytes(piece))
                except OSError:
                    break
    finally:
        os.close(fd)
    assert os.statvfs(path).f_bavail == 0
    return written


def _try(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]} is not allowed here: {done.stderr.strip()}")

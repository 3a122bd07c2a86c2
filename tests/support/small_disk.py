"""A real file system of a few megabytes that a test can fill, empty and make read-only."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_BLOCK: bytes = b"x" * 4096


class SmallDisk:
    """A tmpfs at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Take all that is free; what is given back by others afterwards is taken, too."""
        with self._ballast.open("ab", buffering=0) as file:
            try:
                while file.write(_BLOCK):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Give it back."""
        self._ballast.unlink()

    def remount(self, options: str) -> None:
        """Change it, while it is used."""
        assert _mount("-o", f"remount,{options}", str(self.path))


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[SmallDisk]:
    """Mount a file system of `size` ("8m") at `path`, which is made; skips where it may not."""
    path.mkdir(mode=0o700, exist_ok=True)
    if not _mount("-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(path)):
        pytest.skip("this machine does not let us mount a file system")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, timeout=30)


def _mount(*arguments: str) -> bool:
    if shutil.which("mount") is None:
        return False
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, timeout=30)
    return done.returncode == 0

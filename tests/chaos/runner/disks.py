"""A file system of a chaos run's own, in memory, which can be filled and made read-only."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

_BLOCK: Final = bytes(1 << 16)
_READ_ONLY_S: Final = 1.0


class Disk:
    """A tmpfs mounted at `path`, or a plain folder where this machine does not let us mount.

    Attributes:
        mounted: whether it is one.
    """

    def __init__(self, path: Path, mib: int, *, mount: bool) -> None:
        self.path = path
        path.mkdir(mode=0o700)
        self.mounted = mount and _mount("-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(path))
        self._fillers: set[Path] = set()
        self._over: set[Path] = set()  # those that shall go, as soon as the disk lets them
        self._read_only = 0

    def fill(self) -> Callable[[], object] | None:
        """Leave no room, to the byte; returns what gives it back."""
        if not self.mounted:
            return None
        filler = self.path / f"filler-{time.monotonic_ns()}"
        try:
            with filler.open("wb", buffering=0) as file:
                self._fillers.add(filler)
                size = len(_BLOCK)
                while size:
                    try:
                        # The last pages one by one.
                        if file.write(_BLOCK[:size]) < size:
                            size //= 16
                    except OSError as error:
                        if error.errno != errno.ENOSPC:
                            raise
                        size //= 16
        except OSError:
            pass  # read-only at this moment, or full already

        def free() -> None:
            self._over.add(filler)
            self._sweep()

        return free

    def make_read_only(self) -> Callable[[], object] | None:
        """Make it read-only, once nobody has a file open for writing; returns what undoes it."""
        deadline = time.monotonic() + _READ_ONLY_S
        while self.mounted and time.monotonic() < deadline:
            if _mount("-o", "remount,ro", str(self.path)):
                self._read_only += 1
                return self._writable
            time.sleep(0.02)
        return None

    def _writable(self) -> None:
        self._read_only -= 1
        if not self._read_only:
            _mount("-o", "remount,rw", str(self.path))
            self._sweep()

    def _sweep(self) -> None:
        for filler in list(self._over):
            with suppress(OSError):  # it is read-only at this moment
                filler.unlink(missing_ok=True)
                self._over.discard(filler)
                self._fillers.discard(filler)

    def heal(self) -> None:
        """End all that was done to it."""
        if self.mounted:
            _mount("-o", "remount,rw", str(self.path))
        self._read_only = 0
        self._over |= self._fillers
        self._sweep()

    def close(self) -> None:
        """Unmount it; what was in it is gone."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.path)], check=False, timeout=30)


def can_mount() -> bool:
    """Whether there is any point in trying."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


def _mount(*arguments: str) -> bool:
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, timeout=30)
    return done.returncode == 0

"""A wall clock that a test moves under running processes; their monotonic clock goes on.

clock = ShiftedClock.build(tmp_path)
subprocess.run(..., env={**os.environ, **clock.env()})
clock.shift(3600)      # in running processes, at once
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".c")


@dataclass(frozen=True)
class ShiftedClock:
    """The library, and the file whose number of seconds it adds."""

    library: Path
    file: Path

    @classmethod
    def build(cls, folder: Path) -> ShiftedClock:
        """Compile the library into `folder`; the clock is right at first."""
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            pytest.skip("no C compiler to build the shifted clock with")
        clock = cls(folder / "clock_shift.so", folder / "clock_shift")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
            + ["-o", str(clock.library), str(SOURCE), "-ldl"],
            check=True,
            timeout=60,
        )
        clock.file.write_bytes(bytes(8))
        return clock

    def shift(self, seconds: int) -> None:
        """From now on the clock is so far from the right time."""
        fd = os.open(self.file, os.O_RDWR)
        try:
            with mmap.mmap(fd, 8) as memory:
                memory[:] = struct.pack("<q", seconds)
        finally:
            os.close(fd)

    def env(self) -> dict[str, str]:
        """What a process needs in its environment to live by this clock."""
        return {"LD_PRELOAD": str(self.library), "CLOCK_SHIFT_FILE": str(self.file)}

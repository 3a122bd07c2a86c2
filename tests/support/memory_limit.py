"""A memory cgroup of a test's own: a process in it that takes too much is killed by the kernel."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


class MemoryLimit:
    """The cgroup.

    Attributes:
        folder: its directory.
        v2: whether it is of the unified hierarchy.
    """

    def __init__(self, folder: Path, limit_bytes: int, *, v2: bool) -> None:
        self.folder = folder
        self.v2 = v2
        folder.mkdir()
        try:
            name = "memory.max" if v2 else "memory.limit_in_bytes"
            (folder / name).write_text(str(limit_bytes))
            # With swap to go to nobody would be killed; not every kernel counts it.
            swap = "memory.swap.max" if v2 else "memory.memsw.limit_in_bytes"
            with suppress(OSError):
                (folder / swap).write_text("0" if v2 else str(limit_bytes))
        except OSError:
            folder.rmdir()
            raise

    def add(self, pid: int) -> None:
        """Put a process into it."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def kills(self) -> int:
        """How many of its processes the kernel has killed."""
        events = self.folder / ("memory.events" if self.v2 else "memory.oom_control")
        counts = dict(line.split() for line in events.read_text().splitlines())
        return int(counts.get("oom_kill", 0))


@contextmanager
def memory_limit(limit_bytes: int) -> Generator[MemoryLimit]:
    """A cgroup with a limit, or a skip that says why there is none."""
    found: MemoryLimit | None = None
    why = "no memory controller"
    for base, v2 in ((_V1, False), (_V2, True)):
        if not (base / ("cgroup.controllers" if v2 else "memory.limit_in_bytes")).exists():
            continue
        try:
            found = MemoryLimit(base / f"sidestep-{os.getpid()}", limit_bytes, v2=v2)
            break
        except OSError as error:
            why = f"no memory cgroup can be made: {error}"
    if found is None:
        pytest.skip(why)
    try:
        yield found
    finally:
        found.folder.rmdir()

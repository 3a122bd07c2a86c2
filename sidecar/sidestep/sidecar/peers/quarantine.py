"""Samples of what was refused, for whoever wants to know what came: few, small, the oldest go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

SAMPLES: Final = 16
SAMPLE_BYTES: Final = 64 << 10

_PER_S: Final = 1.0
"""Beyond the first `SAMPLES`: a flood of rubbish shall not become a flood of writes."""


class Quarantine:
    """The folder of samples: ``NN.bin`` with the bytes, ``NN.txt`` with when, what and why.

    Nothing in here may harm whoever calls it: a sample that cannot be kept is not kept.

    Args:
        folder: made when there is something to keep; the folder that it is in must be private.
        clock: monotonic seconds.
    """

    def __init__(self, folder: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._clock = clock
        self._next: int | None = None
        self._budget = float(SAMPLES)
        self._looked = clock()

    def keep(self, what: str, why: str, data: bytes | memoryview) -> bool:
        """Keep the beginning of `data`; whether it was kept.

        Args:
            what: what it is, in a word.
            why: the sentence that it was refused with.
            data: what came.
        """
        now = self._clock()
        self._budget = min(float(SAMPLES), self._budget + (now - self._looked) * _PER_S)
        self._looked = now
        if self._budget < 1.0:
            return False
        self._budget -= 1.0
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        text = f"{stamp}\n{what} of {len(data)} bytes, refused: {why}\n"
        try:
            self._store(bytes(data[:SAMPLE_BYTES]), text.encode("utf-8", "replace"))
        except OSError:
            return False
        return True

    def _store(self, sample: bytes, text: bytes) -> None:
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if self._next is None:
                self._next = _after_newest(folder)
            number, self._next = self._next, (self._next + 1) % SAMPLES
            for name, content in ((f"{number:02}.bin", sample), (f"{number:02}.txt", text)):
                _replace(folder, name, content)
        finally:
            os.close(folder)


def _replace(folder: int, name: str, content: bytes) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)  # also a link that somebody put there
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(name, flags, 0o600, dir_fd=folder), "wb") as file:
        file.write(content)


def _after_newest(folder: int) -> int:
    """Where an earlier daemon would have gone on."""
    newest = (-1, -1)
    for number in range(SAMPLES):
        with suppress(OSError):
            found = os.stat(f"{number:02}.bin", dir_fd=folder, follow_symlinks=False)
            newest = max(newest, (found.st_mtime_ns, number))
    return (newest[1] + 1) % SAMPLES

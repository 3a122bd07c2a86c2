"""Stops one thread of another process, and only that one: ptrace, as a debugger does it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

_DETACH: Final = 17
_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_WALL: Final = 0x40000000  # wait for threads, too


def threads(pid: int) -> list[int]:
    """The threads of a process in the order in which they were started."""
    return sorted(int(name) for name in os.listdir(Path(f"/proc/{pid}/task")))


@contextmanager
def held(tid: int) -> Generator[None]:
    """Stop the thread `tid` while this lasts, wherever it is; skips where tracing is not allowed.

    Should it have the interpreter's lock just then, all threads of its process stand still.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(_SEIZE, tid, None, None) != 0:
        pytest.skip(f"threads cannot be traced here: {os.strerror(ctypes.get_errno())}")
    try:
        assert libc.ptrace(_INTERRUPT, tid, None, None) == 0
        os.waitpid(tid, _WALL)
        yield
    finally:
        libc.ptrace(_DETACH, tid, None, None)

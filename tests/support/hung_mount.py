"""A file system that never answers, as one whose server is gone: FUSE, with nobody behind it."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def hung_mount(path: Path) -> Generator[Path]:
    """Mount it at `path`: whoever looks at anything there waits, and can be killed."""
    path.mkdir(exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"no FUSE here: {error}")
    try:
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"hung", os.fsencode(path), b"fuse", 0, options):
            pytest.skip(f"mount is not allowed here: {os.strerror(ctypes.get_errno())}")
        try:
            yield path
        finally:
            subprocess.run(["umount", "-l", str(path)], check=True)
    finally:
        os.close(fd)  # whoever still waits gets an error

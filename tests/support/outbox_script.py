"""A client that makes its outbox and puts something into it, in a process that may die anywhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sidestep.client import outbox_file
from sidestep.proto import Hello, RunSpec

UUID = b"\x07" * 16
NBYTES = 1 << 20


def make(say: Callable[[Any], None], *, folder: str) -> None:
    """Make an outbox in `folder`, and leave it there as a client does that dies."""
    hello = Hello(UUID, 0, 0, RunSpec("r", "/logs"), pid=os.getpid())
    made = outbox_file.create([folder], NBYTES, hello)
    say(made.path)
    made.close(delete=False)

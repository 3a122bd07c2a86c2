"""How many connections this process has descriptors for, so that none is ever missing elsewhere."""

from __future__ import annotations

import resource
from typing import Final

from .observers import OBSERVERS

_MOST: Final = 65536
_OWN: Final = 384
"""For everything that is no client's: journal, workers, samplers, `tail` and `status`."""

_STRANGERS: Final = 256
"""Connections of peers that are no clients: they have not said who they are, or were rejected."""


def raise_limit() -> int:
    """Have as many descriptors as the system allows; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(_MOST, hard) if hard != resource.RLIM_INFINITY else _MOST
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def observers(files: int) -> int:
    """How many may look on at each of the doors for that, with `files` descriptors."""
    return max(8, min(OBSERVERS, files // 16))


def share(files: int, max_clients: int) -> tuple[int, int]:
    """How many clients and how many connections there may be with `files` descriptors.

    Both are at least one; where descriptors are scarce, half of them are for connections.
    """
    connections = max(2, files - min(_OWN, files // 2))
    strangers = max(1, min(_STRANGERS, connections // 4))
    clients = max(1, min(max_clients, connections - strangers))
    return clients, clients + strangers

"""The doors for those who look on: the command line's questions, and the feed that `tail` reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from sidestep.proto import RemoteProtocolError

from .door import Door, Manners

OBSERVERS: Final = 64
"""At each of the two doors at once, if there are descriptors for them."""

_MAX_REQUEST_BYTES: Final = 1 << 20
_IPC: Final = "ipc://"


def control_door(endpoint: str, most: int, log: Callable[[str], None]) -> Door:
    """Where questions come in, each of them a frame, perhaps with a REQ socket's envelope.

    Raises:
        OSError: it cannot listen there.
    """
    manners = Manners(
        "ROUTER",
        ("DEALER", "REQ"),
        most,
        _MAX_REQUEST_BYTES,
        max_parts=3,
        stranger_s=60.0,  # whoever reads the answer slowly has a minute
        unsent_bytes=64 << 20,
    )
    return Door([endpoint.removeprefix(_IPC)], manners, _saying(log, "control socket"))


def feed_door(endpoint: str, most: int, log: Callable[[str], None]) -> Door:
    """Where subscribers come in: they say what they want, and nothing more.

    Raises:
        OSError: it cannot listen there.
    """
    # What waits for a `tail` that does not read; the next message is lost to it.
    manners = Manners(
        "XPUB", ("SUB", "XSUB"), most, 1 << 16, silent_s=math.inf, unsent_bytes=128 << 10
    )
    return Door([endpoint.removeprefix(_IPC)], manners, _saying(log, "feed"))


def _saying(log: Callable[[str], None], where: str) -> Callable[[RemoteProtocolError, bytes], None]:
    left = 100  # lines for each door, so that nobody fills the log

    def refused(error: RemoteProtocolError, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            log(f"{where}: {len(data)} bytes are refused, {error.code}: {error}")

    return refused

"""Which process a client is, as this machine numbers it: whoever holds the lock on its outbox.

What a client says its process id is counts in its own container; here that number may be somebody
else's, or the daemon's own. The kernel knows, and translates.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from sidestep.proto.paths import OUTBOX_SUFFIX

_FLOCK: Final = struct.Struct("@hhqqi0q")
"""The C struct flock: l_type, l_whence, l_start, l_len, l_pid."""


def holder(directories: Sequence[str], client: bytes) -> int | None:
    """The process that holds a client's outbox.

    Args:
        directories: where the outboxes of this machine's clients are.
        client: its uuid, 16 bytes.

    Returns:
        Its id here; None when it has no outbox here, has gone, or is in a container that this
        process cannot see into.
    """
    name = client.hex() + OUTBOX_SUFFIX
    for directory in directories:
        with suppress(OSError):
            fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                kind, *_, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
            finally:
                os.close(fd)
            # 0: it is not among the processes that can be seen from here.
            return pid if kind != fcntl.F_UNLCK and pid > 0 else None
    return None

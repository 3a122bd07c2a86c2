"""Where a client's outbox goes: to where its daemon looks, or apart, if that is elsewhere.

A daemon adopts what its dead clients leave in the folders of its own machine. What is for a daemon
elsewhere lies in folders beside them, with that daemon's address: `sidestep drain` brings it there.
"""

from __future__ import annotations

import logging
import os

from sidestep.proto import Hello
from sidestep.proto.addresses import is_loopback, is_tcp
from sidestep.proto.paths import OUTBOX_SUFFIX, REMOTE_FILE, outbox_dirs, remote_suffix

from . import outbox_file
from .outbox_file import OutboxMemory
from .settings import Settings

logger = logging.getLogger("sidestep")


def create(settings: Settings, nbytes: int, hello: Hello) -> OutboxMemory:
    """Make the outbox of a client.

    Args:
        settings: the client's.
        nbytes: size of the whole file.
        hello: who the client is.

    Raises:
        LocalProtocolError: `nbytes` is too small for what `hello` says.
        OSError: there is not even so much private memory.
    """
    places = outbox_dirs(settings.paths, settings.state_dir, os.getuid())
    endpoint = settings.endpoint
    if not is_tcp(endpoint) or is_loopback(endpoint):
        return outbox_file.create(places, nbytes, hello)
    suffix = remote_suffix(endpoint)
    memory = outbox_file.create(
        [place + suffix for place in places], nbytes, hello, adoptable=False
    )
    if memory.path:
        folder = os.path.dirname(memory.path)
        _leave_address(folder, endpoint, settings.keys.folder if settings.keys else "")
        others = sum(name.endswith(OUTBOX_SUFFIX) for name in os.listdir(folder)) - 1
        if others:
            logger.info(
                "sidestep: %d more outboxes here are for %s; `sidestep drain` delivers those whose "
                "trainer has died",
                others,
                endpoint,
            )
    return memory


def _leave_address(folder: str, endpoint: str, keys: str) -> None:
    path = os.path.join(folder, REMOTE_FILE)
    draft = f"{path}.{os.getpid()}"
    try:
        with open(draft, "w", encoding="utf-8") as file:
            file.write(f"{endpoint}\n{keys}\n")
        os.replace(draft, path)
    except OSError as error:
        logger.warning("sidestep: cannot write %s: %s", path, error)

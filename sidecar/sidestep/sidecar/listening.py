"""Where a daemon listens, and to how many: out of its settings and what the system allows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from sidestep.proto.addresses import is_tcp
from sidestep.proto.paths import RuntimePaths

from .config import ConfigurationError, SidecarSettings
from .ingest.roster import Limits
from .peers import descriptors
from .peers.keys import load as load_keys
from .peers.tcp_door import TcpDoor

if TYPE_CHECKING:
    import zmq


def limits(settings: SidecarSettings, files: int, log: Callable[[str], None]) -> Limits:
    """What is granted to clients, with so many descriptors."""
    wanted = settings.max_clients
    clients, connections = descriptors.share(files, wanted)
    why = "max_clients"
    if clients < wanted:
        why = f"its limit of open files is {files}: ulimit -n"
        log(f"at most {clients} of {wanted} clients can be served: {why}")
    passes_on = settings.forward_to is not None
    return Limits(settings.credit_mb << 20, clients, connections, why, passes_on)


def endpoints(settings: SidecarSettings, paths: RuntimePaths) -> list[str]:
    """The Unix sockets.

    Raises:
        ConfigurationError: what comes in there is to be passed on to one of them.
    """
    own, other = paths.data_endpoint, settings.endpoint
    found = [own, other] if other and other != own and not is_tcp(other) else [own]
    if settings.forward_to in found:
        raise ConfigurationError(
            f"forward_to {settings.forward_to!r} is where this daemon itself listens: name the "
            "next daemon's"
        )
    return found


def tcp_door(
    settings: SidecarSettings,
    context: zmq.Context[zmq.Socket[bytes]],
    log: Callable[[str], None],
) -> Callable[[], TcpDoor] | None:
    """What listens at the TCP address, if there is one; bad keys are known here already.

    Raises:
        KeysError: the keys are not as they must be.
    """
    endpoint, folder = settings.endpoint, settings.keys
    if not endpoint or not is_tcp(endpoint):
        return None
    keys = load_keys(str(folder)) if folder else None
    return partial(TcpDoor, context, endpoint, keys, log)

"""Who may be a client: whether there is room, and whether both sides speak the same version."""

from __future__ import annotations

from collections.abc import Iterable

from sidestep.proto import Hello, Message, Reject, ServerSession
from sidestep.proto.limits import MAX_VIA
from sidestep.proto.session import Send, ServerAction

from .roster import Limits


def why_back(hello: Hello, identity: int) -> Reject | None:
    """Why a client cannot have come this way; None when it can.

    Args:
        hello: how it is introduced.
        identity: of this daemon's journal.
    """
    if identity in hello.via:
        reason = "this daemon has passed that client on already: forward_to leads in a circle"
        return Reject("loop", reason)
    if len(hello.via) >= MAX_VIA:
        return Reject("loop", f"that client came through {len(hello.via)} daemons already")
    return None


def why_not(hello: Hello, connected: int, limits: Limits) -> Reject | None:
    """Why a client that is not connected may not be; None when it may.

    Args:
        hello: how it introduces itself.
        connected: how many clients are.
        limits: how many may be.
    """
    if connected >= limits.max_clients:
        reason = f"this daemon serves at most {limits.max_clients} clients at once"
        return Reject("full", f"{reason} ({limits.why_clients})")
    if 1 < hello.world_size <= hello.rank:  # it would count as one that is awaited
        reason = f"rank {hello.rank} of a world of {hello.world_size}: ranks begin at 0"
        return Reject("rank", reason)
    # What a session says to a stranger of whom it remembers nothing.
    return rejection(ServerSession(0).receive(hello))


def rejection(actions: Iterable[ServerAction]) -> Reject | None:
    """The REJECT among what a session wants to be sent, if there is one."""
    for action in actions:
        message: Message | None = action.message if isinstance(action, Send) else None
        if isinstance(message, Reject):
            return message
    return None

"""The two ends of a conversation as pure state machines: messages in, actions out, no I/O.

Theory of operation
-------------------
Records are numbered 1, 2, 3, ... by the client, for its whole life. The daemon remembers, in the
same transaction as the records, the highest number up to which it has everything
(`durable_seq`); that is the whole of deduplication. The client keeps each record until it is
acknowledged. Acknowledgements are cumulative. What was dropped is announced by a GAP in its
turn, so that the numbers stay without holes.

The link may lose, repeat, delay and reorder messages and may end at any time:

- the client sends in order, within the credit; when no acknowledgement makes progress for
  `RETRY_S`, or the daemon says that something is missing, it goes back to the first
  unacknowledged record (go-back-N), but not once for every refusal of one and the same window;
- the daemon takes a message only if it begins at the next number or overlaps it; what it has
  it acknowledges again, what comes too early it refuses with the number that it waits for;
- HELLO and BYE are repeated until they are answered; silence for `DEAD_S` ends the connection
  and the client asks for a new one, for ever, with jittered backoff;
- a daemon that does not know who speaks, or not under which tags, says so, and the client
  introduces itself again. So it does when a daemon waits for what another has acknowledged.

Client: every (state, event) pair that changes the state is in `CLIENT_TRANSITIONS`; whatever
is not there leaves the state as it is.
"""

from __future__ import annotations

from .client import (
    BACKOFF_FIRST_S,
    BACKOFF_LAST_S,
    CLIENT_TRANSITIONS,
    NACK_QUIET_S,
    RETRY_LAST_S,
    RETRY_S,
    ClientAction,
    ClientEvent,
    ClientSession,
    ClientState,
    Durable,
    Notify,
    Reconnect,
    Refused,
    Rejected,
)
from .common import (
    DEAD_S,
    PING_S,
    Send,
)
from .server import (
    UNDEFINED_TIMES,
    Append,
    CountGap,
    DefineTags,
    Farewell,
    ServerAction,
    ServerSession,
)

__all__ = [
    "BACKOFF_FIRST_S",
    "BACKOFF_LAST_S",
    "CLIENT_TRANSITIONS",
    "DEAD_S",
    "NACK_QUIET_S",
    "PING_S",
    "RETRY_LAST_S",
    "RETRY_S",
    "UNDEFINED_TIMES",
    "Append",
    "ClientAction",
    "ClientEvent",
    "ClientSession",
    "ClientState",
    "CountGap",
    "DefineTags",
    "Durable",
    "Farewell",
    "Notify",
    "Reconnect",
    "Refused",
    "Rejected",
    "Send",
    "ServerAction",
    "ServerSession",
]

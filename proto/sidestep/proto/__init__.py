"""What travels between a trainer and its daemon. Pure: no socket, thread, file or tensor."""

from __future__ import annotations

from .codec import decode, encode
from .errors import LocalProtocolError, ProtocolError, RemoteProtocolError, SidestepError
from .messages import (
    Ack,
    Alarm,
    Batch,
    Books,
    Bye,
    ByeAck,
    ClientMessage,
    DaemonMessage,
    Gap,
    Hello,
    Message,
    Nack,
    Part,
    Ping,
    Pong,
    Reject,
    RunSpec,
    Tags,
    Welcome,
)
from .records import Array, Scalars, Value
from .session import ClientSession, ServerSession

__all__ = [
    "Ack",
    "Alarm",
    "Array",
    "Batch",
    "Books",
    "Bye",
    "ByeAck",
    "ClientMessage",
    "ClientSession",
    "DaemonMessage",
    "Gap",
    "Hello",
    "LocalProtocolError",
    "Message",
    "Nack",
    "Part",
    "Ping",
    "Pong",
    "ProtocolError",
    "Reject",
    "RemoteProtocolError",
    "RunSpec",
    "Scalars",
    "ServerSession",
    "SidestepError",
    "Tags",
    "Value",
    "Welcome",
    "decode",
    "encode",
]

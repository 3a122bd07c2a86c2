"""The exceptions of the protocol: what went wrong, and on which side of the wire."""

from __future__ import annotations


class SidestepError(Exception):
    """Base of every exception that sidestep raises on purpose."""


class ProtocolError(SidestepError):
    """A message or an order of messages that the protocol does not allow."""


class LocalProtocolError(ProtocolError):
    """This side tried to do what the protocol forbids: a bug here, not at the peer."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol forbids; nothing of it was acted upon.

    Attributes:
        code: a short machine-readable reason (``"malformed"``, ``"too_large"``, ...).
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

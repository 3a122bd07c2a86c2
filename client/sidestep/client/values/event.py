"""Protocol buffers that somebody else made: they go into the event file as they are."""

from __future__ import annotations

from typing import Any, Literal

from .base import EmitContext, InvalidValueError, Prepared, Value


class Event(Value):
    """A TensorBoard event, written as it is but for its step and time; only TensorBoard shows it.

    Args:
        message: a protocol buffer of tensorboard, tensorboardX or TensorFlow.
        part: what it is: a whole ``Event``, or the ``Summary`` of one.

    Raises:
        InvalidValueError: when emitted, if it cannot be serialized, or says nothing.
    """

    kind = "event"

    def __init__(self, message: Any, part: Literal["event", "summary"] = "event") -> None:
        self._message = message
        self._part = part

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        data = serialized(self._message, self._part.capitalize())
        return Prepared(self.kind, {"part": self._part}, (data,))


def serialized(message: Any, what: str) -> Any:
    """A protocol buffer as an array of bytes.

    Raises:
        InvalidValueError: it is none, or empty.
    """
    import numpy as np

    try:
        data = bytes(message.SerializeToString())
    except Exception as error:
        raise InvalidValueError(
            f"{what} must be a protocol buffer, not {type(message).__name__}: {error}"
        ) from error
    if not data:
        raise InvalidValueError(f"{what} that says nothing")
    return np.frombuffer(data, np.uint8)

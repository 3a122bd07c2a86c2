"""A frame yields a message, or a `RemoteProtocolError`; a message says the same frame again."""

from __future__ import annotations

import random
from collections.abc import Iterator

from sidestep.proto import Message, RemoteProtocolError, decode, encode
from tests.unit.proto.strategies import MESSAGES

from ..mutator import mutate_bytes, mutate_packed
from ..seeds import drawn

CODES = {"too_large", "version", "unknown_kind", "malformed", "no_protocol"}
_PREFIX = 4
_MAX_REASON = 1000


def parsed(frame: bytes) -> Message | None:
    """The message in `frame`, None when it is refused as it should be."""
    try:
        message = decode(frame)
    except RemoteProtocolError as error:
        if error.code not in CODES or len(str(error)) > _MAX_REASON:
            raise AssertionError(f"no refusal that may travel back: {error.code}") from error
        return None
    said = encode(message)
    again = decode(said)
    assert type(again) is type(message)
    # NaN in a configuration is not equal to itself, so bytes are compared.
    assert encode(again) == said
    return message


def check(data: bytes) -> None:
    """One frame."""
    parsed(data)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another frame."""
    if len(data) <= _PREFIX or rng.random() < 0.1:
        return mutate_bytes(data, rng)
    return data[:_PREFIX] + mutate_packed(data[_PREFIX:], rng)


def seeds() -> Iterator[bytes]:
    """A few frames of each kind."""
    for strategy in MESSAGES.values():
        yield from map(encode, drawn(strategy, 4))

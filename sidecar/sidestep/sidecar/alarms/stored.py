"""An alarm's state as bytes for the journal, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack

from .machine import TagState


def packed(state: TagState) -> bytes:
    """A state as it is journalled."""
    data: Any = msgpack.packb(state.plain())
    return bytes(data)


def states_of(stored: Mapping[str, bytes]) -> dict[str, TagState]:
    """The states that were journalled, by tag.

    One that another version has written is left out: its representation begins anew, with a
    warm-up.
    """
    found: dict[str, TagState] = {}
    for tag, data in stored.items():
        try:
            found[tag] = TagState.from_plain(msgpack.unpackb(data))
        except ValueError:  # msgpack's own are ValueErrors too
            continue
    return found

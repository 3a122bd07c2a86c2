"""Brings a dead trainer's outbox to the daemon on another machine that it was for.

As its client would have: with its number for each record, so that what that daemon knows already
is not written twice. Everything that was not acknowledged yet is kept until it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from sidestep.proto import Batch, Gap, Part, RemoteProtocolError, SidestepError, Tags
from sidestep.proto.session import ClientState

from ..forwarding.crossing import Crossing, jitter
from ..forwarding.delivery import Delivery
from ..forwarding.links import RemoteKeys
from ..forwarding.units import Unit, gap, tags_messages
from ..ingest.adopt import Adoption

_TAKE_BYTES: Final = 1 << 20
_WINDOW_BYTES: Final = 16 << 20
_WAIT_S: Final = 0.05
_LAST_WORD_S: Final = 2.0


class ForwardError(SidestepError):
    """The outbox could not be delivered; it stays where it is."""


def forward(
    adoption: Adoption, endpoint: str, keys: RemoteKeys | None, timeout_s: float | None
) -> None:
    """Deliver everything, and remove the outbox.

    Args:
        adoption: the dead client's outbox, locked.
        endpoint: the daemon's TCP address.
        keys: None for plain TCP.
        timeout_s: how long to try; None for as long as it takes.

    Raises:
        ForwardError: the daemon did not take it all in time, or will not; says which.
    """
    crossing = Crossing(endpoint, keys)
    try:
        _Forwarding(crossing, adoption, endpoint).run(timeout_s)
    except RemoteProtocolError as error:
        raise ForwardError(f"the outbox {adoption.path} is damaged: {error}") from None
    finally:
        crossing.close()
    adoption.remove()


class _Forwarding:
    def __init__(self, crossing: Crossing, adoption: Adoption, endpoint: str) -> None:
        # One more connection of the same client, after all of its own and of earlier attempts.
        hello = replace(adoption.hello, connection=time.time_ns() >> 20)
        send, add = crossing.sender()
        self._delivery = Delivery(hello, self._define, send, jitter)
        add(self._delivery)
        self._crossing = crossing
        self._adoption = adoption
        self._endpoint = endpoint
        self._tag_sets: list[tuple[str, ...]] = []
        self._units = self._read()
        self._read_all = False

    def run(self, timeout_s: float | None) -> None:
        """Until all of it is durable there."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        delivery = self._delivery
        while not (self._read_all and delivery.delivered):
            self._hand_over()
            self._crossing.turn(_WAIT_S)
            if delivery.rejected is not None:
                raise ForwardError(f"{self._endpoint} refuses it: {delivery.rejected.reason}")
            if deadline is not None and time.monotonic() > deadline:
                raise ForwardError(
                    f"{self._endpoint} did not take all of {self._adoption.path} within "
                    f"{timeout_s:g} s: is the daemon there, and does it list this key?"
                )
        self._say_last()

    def _hand_over(self) -> None:
        while not self._read_all and self._delivery.nbytes < _WINDOW_BYTES:
            unit = next(self._units, None)
            if unit is None:
                self._read_all = True
            else:
                self._delivery.take(unit, "it was dropped")
                self._crossing.hurry()

    def _say_last(self) -> None:
        """The client's last books, and its farewell; or that it could say none."""
        delivery = self._delivery
        delivery.say(self._adoption.books(delivery.acked_seq, delivery.acked_dropped))
        delivery.finish(time.monotonic(), lost=not self._adoption.finished)
        until = time.monotonic() + _LAST_WORD_S
        while time.monotonic() < until and delivery.state is not ClientState.CLOSED:
            self._crossing.turn(_WAIT_S)

    def _read(self) -> Iterator[Unit]:
        """What the outbox holds; the parts of a large record are one unit."""
        parts: list[Part] = []
        while not self._adoption.exhausted:
            for message in self._adoption.take(_TAKE_BYTES):
                match message:
                    case Tags():
                        self._tag_sets += message.tag_sets
                        self._delivery.tags_changed()
                    case Part():
                        parts.append(message)
                        if message.offset + len(message.data) == message.total:
                            yield Unit(message.seq, message.seq, message.total, tuple(parts))
                            parts = []
                    case Batch(first, last, data):
                        yield Unit(first, last, len(data), (message,))
                    case Gap(first, last, reason):
                        yield gap(first, last, reason)
                    case _:
                        pass  # an outbox holds nothing else

    def _define(self, first: int) -> Iterator[Tags]:
        return tags_messages(enumerate(self._tag_sets[first:], first))

"""The daemon's end of a conversation: takes records in order and once, acknowledges the durable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .. import messages as m
from ..limits import MAX_RECORD_BYTES, MAX_SEQ, PROTOCOL_VERSION
from .common import Send

UNDEFINED_TIMES: Final = 5
"""How often a client is asked for the tag sets of one record, for TAGS can be lost again."""

MAX_REASON: Final = 500
"""Characters of somebody else's error message that travel as the reason of a NACK."""


@dataclass(frozen=True, slots=True)
class DefineTags:
    """Remember these tag sets for the client."""

    first_id: int
    tag_sets: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Append:
    """Journal `data` without its first `skip` records; acknowledge after the commit."""

    first_seq: int
    last_seq: int
    skip: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class CountGap:
    """Count records `first_seq` to `last_seq` as dropped by the client."""

    first_seq: int
    last_seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class Farewell:
    """The client has gone, and everything of it is durable; `lost`: it did not mean to."""

    lost: bool = False


ServerAction = Send | DefineTags | Append | CountGap | Farewell


class ServerSession:
    """The daemon's end of one client's conversation, across its connections.

    The shell journals what `Append` and `CountGap` say in the order in which they come, commits,
    and then calls `committed`, which acknowledges. If it cannot take an `Append`, at once it
    calls `refuse` (a record is malformed: it never will) or `undefined` (a tag set is not known:
    not yet), with the rest of the `Append` if it has taken the records before; if the
    transaction fails, `rolled_back`.

    Args:
        daemon_id: random number of this daemon's process.
        durable_seq: what the journal has of this client.
        dropped: how many of those were dropped.

    Attributes:
        elsewhere: records up to `durable_seq` that another journal has acknowledged, not this one.
    """

    def __init__(self, daemon_id: int, durable_seq: int = 0, dropped: int = 0) -> None:
        self.durable_seq = durable_seq
        self.dropped = dropped
        self.credit = 0
        self.pace_ms = 0
        self.books = m.Books()
        self.elsewhere = 0
        self.finished = False
        self.greeted = False
        self.connection = -1
        self.instance: int | None = None
        self._daemon_id = daemon_id
        self._taken_seq = durable_seq  # appended, perhaps not committed yet
        self._taken_dropped = dropped
        self._parts = bytearray()
        self._parts_seq = 0
        self._undefined_seq = self._undefined_times = 0

    @property
    def taken_seq(self) -> int:
        """What `durable_seq` will be after the commit: what the transaction must store."""
        return self._taken_seq

    @property
    def taken_dropped(self) -> int:
        """What `dropped` will be after the commit."""
        return self._taken_dropped

    @property
    def reassembling_bytes(self) -> int:
        """Memory held for a record that is coming in parts."""
        return len(self._parts)

    def receive(self, message: m.Message, peer_alive: bool = False) -> list[ServerAction]:
        """A message of this client came.

        Args:
            message: the message.
            peer_alive: whether another connection of the same client was heard lately; only
                a HELLO looks at it.
        """
        if isinstance(message, m.Hello):
            return self._hello(message, peer_alive)
        if not self.greeted:
            return [Send(m.Nack("unknown_session", "say HELLO first"))]
        match message:
            case m.Tags():
                return [DefineTags(message.first_id, message.tag_sets)]
            case m.Batch() | m.Part() | m.Gap():
                return self._records(message)
            case m.Ping():
                self.books = message.books
                # The acknowledgement renews a credit that was zero, even if one was lost.
                return [Send(m.Pong(self.pace_ms)), Send(self._ack())]
            case m.Bye():
                return self._bye(message)
            case _:
                return [Send(m.Nack("refused", "a daemon's message from a client"))]

    def committed(self) -> list[ServerAction]:
        """All that was appended is durable now."""
        self.durable_seq, self.dropped = self._taken_seq, self._taken_dropped
        return [Send(self._ack())]

    def rolled_back(self) -> None:
        """The transaction failed: what was appended since the last commit is not there."""
        self._taken_seq, self._taken_dropped = self.durable_seq, self.dropped
        self._drop_parts()

    def refuse(self, append: Append, reason: str) -> list[ServerAction]:
        """The records of `append` can never be journalled: the client shall count them."""
        self._taken_seq = append.first_seq - 1
        return [Send(m.Nack("refused", reason[:MAX_REASON], append.first_seq, append.last_seq))]

    def undefined(self, append: Append) -> list[ServerAction]:
        """The tag sets of `append` were lost on the way: the client shall define them anew.

        A client that does not, however often it is asked, has its records refused.
        """
        if append.first_seq != self._undefined_seq:
            self._undefined_seq, self._undefined_times = append.first_seq, 0
        self._undefined_times += 1
        if self._undefined_times > UNDEFINED_TIMES:
            return self.refuse(append, "a tag set is not defined")
        self._taken_seq = append.first_seq - 1
        self.greeted = False
        return [Send(m.Nack("unknown_session", "a tag set is not defined"))]

    def disconnected(self) -> None:
        """The peer was silent for too long, or is gone: forget what was half said."""
        self._drop_parts()

    # --- inside --------------------------------------------------------------------------

    def _hello(self, hello: m.Hello, peer_alive: bool) -> list[ServerAction]:
        if not hello.min_version <= PROTOCOL_VERSION <= hello.max_version:
            reason = (
                f"the client speaks versions {hello.min_version} to {hello.max_version}, this "
                f"daemon {PROTOCOL_VERSION}: install the same sidestep on both sides"
            )
            return [Send(m.Reject("version", reason))]
        if self.instance not in (None, hello.instance) and peer_alive:
            reason = "another live process has the same client uuid: connect() in each process"
            return [Send(m.Reject("duplicate_client", reason))]
        if self.instance == hello.instance and (
            hello.connection < self.connection
            or (hello.connection == self.connection and self.finished)
        ):
            return []  # an old HELLO that was delayed; its sender has moved on
        self.instance, self.connection = hello.instance, hello.connection
        self.greeted, self.finished = True, False
        self._drop_parts()
        # A daemon with a fresh journal must not wait for what another one has acknowledged.
        if hello.acked_seq > self._taken_seq:
            dropped = min(hello.acked_dropped, hello.acked_seq) - self._taken_dropped
            self.elsewhere += max(0, hello.acked_seq - self._taken_seq - max(0, dropped))
            self._taken_seq = self.durable_seq = hello.acked_seq
            self._taken_dropped = self.dropped = min(hello.acked_dropped, hello.acked_seq)
        return [
            Send(
                m.Welcome(
                    self._daemon_id,
                    hello.connection,
                    self.durable_seq,
                    self.dropped,
                    self.credit,
                    MAX_RECORD_BYTES,
                )
            )
        ]

    def _records(self, message: m.Batch | m.Part | m.Gap) -> list[ServerAction]:
        """Take what comes next; answer what is known already, or comes too early."""
        first_seq, last_seq = (
            (message.seq, message.seq)
            if isinstance(message, m.Part)
            else (message.first_seq, message.last_seq)
        )
        if last_seq <= self._taken_seq:
            # What is not committed yet is acknowledged by the commit.
            return [Send(self._ack())]
        if first_seq > self._taken_seq + 1:
            return [self._out_of_order("records are missing")]
        if isinstance(message, m.Part):
            return self._part(message)
        self._drop_parts()  # of a record that was given up meanwhile
        return self._batch(message) if isinstance(message, m.Batch) else self._gap(message)

    def _batch(self, batch: m.Batch) -> list[ServerAction]:
        skip = self._taken_seq + 1 - batch.first_seq
        append = Append(batch.first_seq + skip, batch.last_seq, skip, batch.data)
        self._taken_seq = batch.last_seq
        return [append]

    def _part(self, part: m.Part) -> list[ServerAction]:
        if part.offset == 0:
            self._drop_parts()
            self._parts_seq = part.seq
        if part.seq != self._parts_seq or part.offset != len(self._parts):
            return [self._out_of_order("a part is missing")]
        if part.offset + len(part.data) > part.total:
            self._drop_parts()
            return [Send(m.Nack("refused", "parts exceed their total", part.seq, part.seq))]
        self._parts += part.data
        if len(self._parts) < part.total:
            # A sign of life: on a slow link a large record takes longer than `DEAD_S`.
            return [Send(self._ack())]
        data = bytes(self._parts)
        self._drop_parts()
        self._taken_seq = part.seq
        return [Append(part.seq, part.seq, 0, data)]

    def _gap(self, gap: m.Gap) -> list[ServerAction]:
        first = self._taken_seq + 1
        self._taken_seq = gap.last_seq
        self._taken_dropped += gap.last_seq - first + 1
        return [CountGap(first, gap.last_seq, gap.reason)]

    def _bye(self, bye: m.Bye) -> list[ServerAction]:
        self.books = bye.books
        if bye.last_seq > self.durable_seq:
            return [self._out_of_order("records are missing")]
        self.finished = True
        return [Send(m.ByeAck(bye.last_seq)), Farewell(bye.lost)]

    def _out_of_order(self, reason: str) -> Send:
        return Send(m.Nack("out_of_order", reason, min(self._taken_seq + 1, MAX_SEQ)))

    def _ack(self) -> m.Ack:
        return m.Ack(self.durable_seq, self.dropped, self.credit)

    def _drop_parts(self) -> None:
        self._parts = bytearray()
        self._parts_seq = 0

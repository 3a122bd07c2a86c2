"""A daemon in the test's own process: the real protocol, a list for a journal, faults."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import zmq

from sidestep.proto import (
    Batch,
    Gap,
    Hello,
    Message,
    Nack,
    Part,
    Ping,
    Reject,
    ServerSession,
    decode,
    encode,
)
from sidestep.proto.paths import RuntimePaths
from sidestep.proto.records import SCALARS, decode_scalars, walk
from sidestep.proto.session import Append, CountGap, DefineTags, Farewell, Send

Row = tuple[tuple[str, ...], int, tuple[float, ...]]


@dataclass
class Known:
    """What the daemon has of one client: what a journal would hold."""

    hello: Hello
    session: ServerSession
    tag_sets: dict[int, tuple[str, ...]] = field(default_factory=dict)
    records: list[bytes] = field(default_factory=list)
    gaps: list[tuple[int, int, str]] = field(default_factory=list)
    farewell: bool = False


class FakeDaemon:
    """Listens at the runtime directory's endpoint while it is entered.

    Args:
        paths: the runtime directory.
        credit: bytes that clients may have under way.
        journal: what an earlier daemon knew.
        answer: called with each message before the session sees it; what it returns is sent instead
            of the session's answers, unless it is None.
    """

    def __init__(
        self,
        paths: RuntimePaths,
        *,
        credit: int = 8 << 20,
        journal: dict[bytes, Known] | None = None,
        answer: Callable[[Message], list[Message] | None] = lambda _: None,
    ) -> None:
        self.clients: dict[bytes, Known] = {} if journal is None else journal
        self.credit = credit
        self.undefined = 0
        self.said: list[Message] = []
        self._to_say: list[Message | bytes] = []
        self._paths = paths
        self._answer = answer
        self._stop = threading.Event()
        self._identities: dict[bytes, Known] = {}
        self._thread = threading.Thread(target=self._serve, name="fake-daemon")
        self._bound = threading.Event()

    def __enter__(self) -> Self:
        os.makedirs(self._paths.directory, exist_ok=True)
        self._thread.start()
        assert self._bound.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def rows(self) -> list[Row]:
        """The numbers of the one client that there was: tags, step, values."""
        (known,) = self.clients.values()
        rows: list[Row] = []
        for record in known.records:
            if record[4] == SCALARS:
                scalars = decode_scalars(record)
                rows.append((known.tag_sets[scalars.tag_set], scalars.step, scalars.values))
        return rows

    def say(self, message: Message | bytes) -> None:
        """Send a message, or any other frame, to all clients."""
        self._to_say.append(message)

    # --- the thread --------------------------------------------------------------------------

    def _serve(self) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(self._paths.data_endpoint)
        self._bound.set()
        try:
            while not self._stop.is_set():
                if socket.poll(10):
                    identity, frame = socket.recv_multipart()
                    for message in self._messages(identity, decode(frame)):
                        self.said.append(message)
                        socket.send_multipart([identity, encode(message)])
                while self._to_say:
                    message = self._to_say.pop()
                    frame = message if isinstance(message, bytes) else encode(message)
                    for identity in self._identities:
                        socket.send_multipart([identity, frame])
        finally:
            context.destroy(linger=0)

    def _messages(self, identity: bytes, message: Message) -> list[Message]:
        instead = self._answer(message)
        if instead is not None:
            return instead
        if isinstance(message, Hello):
            known = self.clients.get(message.uuid)
            if known is None:
                known = self.clients[message.uuid] = Known(message, ServerSession(7))
            self._identities[identity] = known
        elif identity not in self._identities:
            return [Nack("unknown_session", "say HELLO first")]
        known = self._identities[identity]
        known.session.credit = self.credit
        return self._do(known, known.session.receive(message))

    def _do(self, known: Known, actions: list[object]) -> list[Message]:
        out: list[Message] = []
        for action in actions:
            match action:
                case Send(message):
                    out.append(message)
                case DefineTags(first_id, tag_sets):
                    known.tag_sets.update(enumerate(tag_sets, first_id))
                case Append(_, _, skip, data):
                    records = [bytes(data[at : at + n]) for at, n, _ in walk(data)][skip:]
                    self._check_tags(known, records)
                    known.records += records
                    out += self._do(known, list(known.session.committed()))
                case CountGap(first, last, reason):
                    known.gaps.append((first, last, reason))
                    out += self._do(known, list(known.session.committed()))
                case Farewell():
                    known.farewell = True
                case _:
                    raise AssertionError(action)
        return out

    def _check_tags(self, known: Known, records: list[bytes]) -> None:
        for record in records:
            if record[4] == SCALARS and decode_scalars(record).tag_set not in known.tag_sets:
                self.undefined += 1


def records_in(message: Message) -> bool:
    """Whether a message brings records."""
    return isinstance(message, (Batch, Part, Gap))


__all__ = ["FakeDaemon", "Known", "Ping", "Reject", "records_in"]

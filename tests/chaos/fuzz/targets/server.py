"""A daemon's session takes each record once and in order, whatever a client says in any order."""

from __future__ import annotations

import random
from collections.abc import Iterator

from sidestep.proto import Gap, Hello, Message, Part, RunSpec, ServerSession, encode
from sidestep.proto.limits import MAX_RECORD_BYTES, MAX_SEQ, PROTOCOL_VERSION
from sidestep.proto.messages import Batch, Bye, Ping, Tags
from sidestep.proto.session import Append, CountGap, Send, ServerAction
from tests.unit.proto.strategies import messages

from ..packing import join, pieces, pieces_mutator
from ..seeds import drawn
from . import codec

_MOST = 200
"""Messages of one conversation that are looked at."""


class Daemon:
    """Does what a session says, and sees to it that the session may say so."""

    def __init__(self) -> None:
        self.session = ServerSession(7)
        self.session.credit = 1 << 20
        self.last: Append | None = None

    def hear(self, operation: int, message: Message | None) -> None:
        """One thing happens: mostly a message comes."""
        session = self.session
        match operation % 16:
            case 1:
                self._do(session.committed())
                assert session.durable_seq == session.taken_seq
            case 2:
                session.rolled_back()
                assert session.taken_seq == session.durable_seq
            case 3:
                session.disconnected()
                assert session.reassembling_bytes == 0
            case 4:
                session.credit = 0 if session.credit else 1 << 20
            case _ if message is not None:
                before = session.taken_seq
                actions = session.receive(message, peer_alive=operation % 16 == 5)
                self._do(actions, before)
                if self.last is not None and operation % 16 in (6, 7):
                    refuse = operation % 16 == 6
                    answer = (
                        session.refuse(self.last, "x") if refuse else session.undefined(self.last)
                    )
                    self._do(answer)
            case _:
                pass
        assert 0 <= session.durable_seq <= session.taken_seq <= MAX_SEQ
        assert 0 <= session.taken_dropped <= session.taken_seq
        assert session.reassembling_bytes <= MAX_RECORD_BYTES

    def _do(self, actions: list[ServerAction], before: int = 0) -> None:
        self.last = None
        for action in actions:
            match action:
                case Send(answer):
                    encode(answer)
                case Append(first, last, skip, data):
                    assert first == before + 1 <= last
                    assert skip >= 0
                    assert len(data) <= MAX_RECORD_BYTES
                    self.last = action
                case CountGap(first, last, _reason):
                    assert first == before + 1 <= last
                case _:
                    pass


def check(data: bytes) -> None:
    """A conversation."""
    daemon = Daemon()
    for operation, frame in pieces(data)[:_MOST]:
        daemon.hear(operation, codec.parsed(frame))


mutate = pieces_mutator(codec.mutate)


def seeds() -> Iterator[bytes]:
    """A conversation as it should be, and some of any messages."""
    yield join((0, encode(message)) for message in conversation())
    yield join(
        (op, encode(message)) for op, message in zip([0, 1, 6, 1] * 9, conversation(), strict=False)
    )
    several = drawn(messages, 30)
    rng = random.Random(0)
    for _ in range(8):
        chosen = [conversation()[0], *rng.choices(several, k=6)]
        yield join((rng.randrange(8), encode(message)) for message in chosen)


def conversation() -> list[Message]:
    """From HELLO to BYE, with records of all sizes."""
    hello = Hello(b"u" * 16, 1, 1, RunSpec("run", "/logs"), min_version=1)
    assert hello.max_version == PROTOCOL_VERSION
    return [
        hello,
        Tags(0, (("loss",), ("a", "b"))),
        Batch(1, 2, b"x" * 80),
        Ping(),
        Part(3, 0, 300, b"y" * 100),
        Part(3, 100, 300, b"y" * 200),
        Gap(4, 9, "full"),
        Batch(8, 12, b"z" * 80),
        Bye(12),
        Bye(12),
    ]

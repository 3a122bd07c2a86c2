"""A client's session keeps its numbers in order and can be said, whatever a daemon answers."""

from __future__ import annotations

import random
from collections.abc import Iterator

from sidestep.proto import (
    Ack,
    Alarm,
    ByeAck,
    ClientSession,
    Hello,
    Message,
    Nack,
    Pong,
    Reject,
    RunSpec,
    Welcome,
    encode,
)
from sidestep.proto.limits import MAX_SEQ
from sidestep.proto.session import ClientAction, ClientState, Durable, Notify, Refused, Send
from tests.unit.proto.strategies import messages

from ..packing import join, pieces, pieces_mutator
from ..seeds import drawn
from . import codec

_MOST = 200
_RECORDS = 12
_MAX_ALARMS = 10_000


class Trainer:
    """The owner of a session: has twelve records to send, and a clock that jumps."""

    def __init__(self) -> None:
        self.session = ClientSession(Hello(b"u" * 16, 1, 0, RunSpec("run", "/logs")), lambda: 0.5)
        self.now = 0.0
        self._do(self.session.connected(self.now))

    def hear(self, operation: int, message: Message | None) -> None:
        """Time goes by, what may be sent is sent, and mostly a message comes."""
        self.now += (0.001, 0.3, 1.1, 6.0)[operation >> 6]
        session, acked = self.session, self.session.acked_seq
        match operation % 8:
            case 1:
                self._do(session.connected(self.now))
            case 2:
                self._do(session.finish(_RECORDS, self.now))
            case _:
                if message is not None:
                    self._do(session.receive(message, self.now))
        self._do(session.tick(self.now))
        for _ in range(3):
            if session.next_seq <= _RECORDS and session.may_send(100):
                session.sent(session.next_seq, session.next_seq, 100, self.now)
        assert acked <= session.acked_seq <= MAX_SEQ, "an acknowledgement is never taken back"
        assert 0 <= session.acked_dropped <= session.acked_seq
        assert session.next_seq > session.acked_seq
        assert len(session._alarms) <= _MAX_ALARMS
        assert session._in_flight_bytes == sum(size for _, size in session._in_flight)

    def _do(self, actions: list[ClientAction]) -> None:
        for action in actions:
            match action:
                case Send(message):
                    encode(message)
                case Refused(first, last, _reason):
                    assert self.session.acked_seq < first <= last
                    assert self.session.state is not ClientState.CLOSED
                case Durable(seq, dropped):
                    assert 0 <= dropped <= seq
                case Notify(alarm):
                    assert isinstance(alarm, Alarm)
                case _:
                    pass


def check(data: bytes) -> None:
    """A conversation."""
    trainer = Trainer()
    for operation, frame in pieces(data)[:_MOST]:
        trainer.hear(operation, codec.parsed(frame))


mutate = pieces_mutator(codec.mutate)


def seeds() -> Iterator[bytes]:
    """A conversation as it should be, and some of any messages."""
    well = [
        Welcome(9, 1, 0, 0, 4096, 64 << 20),
        Ack(2, 0, 1000),
        Nack("out_of_order", "", 3, 0),
        Nack("refused", "no", 3, 4),
        Alarm("t", "COLLAPSED", 5, "rank"),
        Nack("unknown_session", ""),
        Welcome(9, 2, 4, 2, 4096, 64 << 20),
        Pong(),
        Ack(12, 2, 4096),
        ByeAck(12),
    ]
    yield join((0, encode(message)) for message in well)
    yield join((2 if i == 5 else 64, encode(message)) for i, message in enumerate(well))
    yield join((0, encode(message)) for message in [*well[:3], Reject("full", "no")])
    several = drawn(messages, 30)
    rng = random.Random(0)
    for _ in range(8):
        chosen = [well[0], *rng.choices(several, k=6)]
        yield join((rng.randrange(256), encode(message)) for message in chosen)

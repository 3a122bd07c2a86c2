"""The client's end of a conversation: sends within the credit, goes back, greets anew."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from .. import messages as m
from ..errors import LocalProtocolError
from ..limits import MAX_RECORD_BYTES
from .common import DEAD_S, PING_S, Send

RETRY_S: Final = 2.0
"""HELLO, BYE and unacknowledged records are sent again after so long without an answer."""

RETRY_LAST_S: Final = 8.0
"""Unacknowledged records are sent again at doubling intervals, up to this one: a daemon that is
merely slow must not have more and more copies to read."""

MAX_PACE_S: Final = 0.1
"""A daemon may ask for so long a time between two messages; who watches a run must not notice."""

NACK_QUIET_S: Final = 0.25
"""A refusal that comes so soon after going back may speak of what was sent before; going back for
each would send the window once for every message in it."""

BACKOFF_FIRST_S: Final = 0.05
BACKOFF_LAST_S: Final = 2.0


WELL: Final = frozenset({"OK", "WARMUP"})
"""States of an alarm in which nothing is wrong."""

MAX_ALARMS: Final = 10_000
"""Tags whose state a client remembers; a daemon that invents more shall not fill its memory."""


class ClientState(enum.Enum):
    """Where a client stands with its daemon."""

    DISCONNECTED = "disconnected"  # waiting until it may connect again
    GREETING = "greeting"  # HELLO is out
    READY = "ready"  # records flow
    CLOSING = "closing"  # BYE is out, everything before it acknowledged or on its way
    CLOSED = "closed"  # the daemon has everything; nothing more will be sent
    REJECTED = "rejected"  # the daemon refused for good


class ClientEvent(enum.Enum):
    """What can change a client's state."""

    CONNECTED = "connected"
    WELCOMED = "welcomed"
    UNKNOWN = "unknown"  # the daemon does not know us: it was restarted
    LOST = "lost"  # silence for DEAD_S
    FINISH = "finish"
    BYE_ACKED = "bye_acked"
    REFUSED = "refused"


_S, _E = ClientState, ClientEvent
CLIENT_TRANSITIONS: Final[Mapping[tuple[ClientState, ClientEvent], ClientState]] = {
    (_S.DISCONNECTED, _E.CONNECTED): _S.GREETING,
    (_S.GREETING, _E.WELCOMED): _S.READY,
    (_S.GREETING, _E.LOST): _S.DISCONNECTED,
    (_S.GREETING, _E.REFUSED): _S.REJECTED,
    (_S.READY, _E.UNKNOWN): _S.GREETING,
    (_S.READY, _E.LOST): _S.DISCONNECTED,
    (_S.READY, _E.REFUSED): _S.REJECTED,
    (_S.READY, _E.FINISH): _S.CLOSING,
    (_S.CLOSING, _E.UNKNOWN): _S.GREETING,
    (_S.CLOSING, _E.LOST): _S.DISCONNECTED,
    (_S.CLOSING, _E.REFUSED): _S.REJECTED,
    (_S.CLOSING, _E.BYE_ACKED): _S.CLOSED,
}


# --- actions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Throw the connection away and open a new one after `delay_s`."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Durable:
    """Everything up to `seq` is safe with the daemon: its memory may be used again."""

    seq: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The daemon can never take these records: drop them, count them, announce the gap."""

    first_seq: int
    last_seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The daemon will not serve this client."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Notify:
    """An alarm for the user's callback."""

    alarm: m.Alarm


ClientAction = Send | Reconnect | Durable | Refused | Rejected | Notify


class ClientSession:
    """The client's end. The owner of the socket feeds it and does what it says.

    Args:
        hello: how to introduce the client; `connection` and the acknowledged numbers are
            filled in here.
        jitter: returns a number in [0, 1), for the backoff.
    """

    def __init__(self, hello: m.Hello, jitter: Callable[[], float]) -> None:
        self.state = ClientState.DISCONNECTED
        self.books = m.Books()
        self.pace_s = 0.0
        self.acked_seq = hello.acked_seq
        self.acked_dropped = hello.acked_dropped
        self.next_seq = hello.acked_seq + 1
        self.max_record_bytes = MAX_RECORD_BYTES
        self.daemon_id = 0
        self._hello = hello
        self._jitter = jitter
        self._connection = hello.connection
        self._credit = 0
        self._in_flight: deque[tuple[int, int]] = deque()  # (last_seq, bytes), in order
        self._in_flight_bytes = 0
        self._failures = 0
        self._heard = self._pinged = self._progress = self._asked = self._rewound = 0.0
        self._retry_s = RETRY_S
        self._refused_seq = 0
        self._alarms: dict[str, tuple[str, int]] = {}  # the last state and step of each tag
        self._finishing: int | None = None
        self._lost = False

    # --- what the owner asks -------------------------------------------------------------

    @property
    def tags_wanted(self) -> bool:
        """Whether records may flow, so that tag sets may be defined."""
        return self.state is ClientState.READY

    def may_send(self, nbytes: int) -> bool:
        """Whether a message with `nbytes` of records may go out now.

        With nothing under way one message may always go, however small the credit, unless it
        is zero: so a record larger than the credit cannot wait for ever.
        """
        if self.state is not ClientState.READY or self._credit == 0:
            return False
        return not self._in_flight or self._in_flight_bytes + nbytes <= self._credit

    def quiet_s(self, now: float) -> float:
        """For how long nothing has come from the daemon."""
        return now - self._heard

    # --- what the owner tells ------------------------------------------------------------

    def connected(self, now: float) -> list[ClientAction]:
        """A new connection was opened (ZeroMQ says nothing of whether anybody listens)."""
        if not self._move(ClientEvent.CONNECTED):
            return []
        self._heard = now
        return self._greet(now)

    def sent(self, first_seq: int, last_seq: int, nbytes: int, now: float) -> None:
        """Records `first_seq` to `last_seq` went out as a BATCH, as all their PARTs, or a GAP.

        Raises:
            LocalProtocolError: they leave records out, or repeat only what was sent already.
        """
        if not first_seq <= self.next_seq <= last_seq:
            raise LocalProtocolError(f"sent {first_seq} to {last_seq}, but {self.next_seq} is next")
        if not self._in_flight:
            self._progress = now
        self._in_flight.append((last_seq, nbytes))
        self._in_flight_bytes += nbytes
        self.next_seq = last_seq + 1

    def finish(self, last_seq: int, now: float, *, lost: bool = False) -> list[ClientAction]:
        """No record will follow `last_seq`: say BYE once it was sent.

        Args:
            last_seq: the last record.
            now: monotonic time.
            lost: whether this end speaks for a client that has vanished.
        """
        self._finishing, self._lost = last_seq, lost
        return self._goodbye(now)

    def receive(self, message: m.Message, now: float) -> list[ClientAction]:
        """A message came from the daemon."""
        self._heard = now
        match message:
            case m.Welcome():
                return self._welcomed(message, now)
            case m.Ack():
                self._credit = message.credit
                return self._acknowledged(message.durable_seq, message.dropped, now)
            case m.Nack():
                return self._refused(message, now)
            case m.Reject():
                if self._move(ClientEvent.REFUSED):
                    return [Rejected(message.code, message.reason)]
            case m.Alarm():
                return self._alarm(message)
            case m.ByeAck():
                if message.last_seq == self._finishing and self._move(ClientEvent.BYE_ACKED):
                    return []
            case m.Pong():
                self.pace_s = min(message.pace_ms / 1000, MAX_PACE_S)
            case _:
                pass  # a client's own kinds: nothing to answer
        return []

    def tick(self, now: float) -> list[ClientAction]:
        """Time went by: call it at least every 100 ms."""
        if self.state not in (ClientState.GREETING, ClientState.READY, ClientState.CLOSING):
            return []
        if now - self._heard >= DEAD_S:
            return self._silent()
        if self.state is ClientState.GREETING:
            return self._greet(now) if now - self._asked >= RETRY_S else []
        if self.state is ClientState.CLOSING:
            return self._say_bye(now) if now - self._asked >= RETRY_S else []
        actions = self._goodbye(now)
        if self._in_flight and now - self._progress >= self._retry_s:
            self._rewind(now)
            self._retry_s = min(2 * self._retry_s, RETRY_LAST_S)
        if now - self._pinged >= PING_S:
            self._pinged = now
            actions.append(Send(m.Ping(self.books)))
        return actions

    # --- inside --------------------------------------------------------------------------

    def _move(self, event: ClientEvent) -> bool:
        target = CLIENT_TRANSITIONS.get((self.state, event))
        if target is None:
            return False
        self.state = target
        return True

    def _introduce(self, now: float) -> list[ClientAction]:
        """Say HELLO again: the daemon does not know us, or not what we know."""
        return self._greet(now) if self._move(ClientEvent.UNKNOWN) else []

    def _greet(self, now: float) -> list[ClientAction]:
        self._connection += 1
        self._asked = now
        hello = replace(
            self._hello,
            connection=self._connection,
            acked_seq=self.acked_seq,
            acked_dropped=self.acked_dropped,
        )
        return [Send(hello)]

    def _welcomed(self, message: m.Welcome, now: float) -> list[ClientAction]:
        if not self._move(ClientEvent.WELCOMED):
            return []
        self._failures = 0
        self._pinged = now
        self.daemon_id = message.daemon_id
        self._credit = message.credit
        self.max_record_bytes = message.max_record_bytes
        actions = self._acknowledged(message.durable_seq, message.dropped, now)
        self._rewind(now)
        self._retry_s = RETRY_S
        return [*actions, *self._goodbye(now)]

    def _acknowledged(self, durable_seq: int, dropped: int, now: float) -> list[ClientAction]:
        # An acknowledgement can be late, never early: a smaller number says nothing new.
        if durable_seq <= self.acked_seq:
            return []
        self.acked_seq, self.acked_dropped = durable_seq, min(dropped, durable_seq)
        self._progress, self._retry_s = now, RETRY_S
        while self._in_flight and self._in_flight[0][0] <= durable_seq:
            self._in_flight_bytes -= self._in_flight.popleft()[1]
        self.next_seq = max(self.next_seq, durable_seq + 1)
        return [Durable(durable_seq, self.acked_dropped), *self._goodbye(now)]

    def _refused(self, message: m.Nack, now: float) -> list[ClientAction]:
        match message.code:
            case "unknown_session":
                return self._introduce(now)
            case "out_of_order" if message.first_seq <= self.acked_seq:
                # It waits for what another daemon has acknowledged since our HELLO.
                return self._introduce(now)
            case "out_of_order" if message.first_seq == self.acked_seq + 1 and self._in_flight:
                if not self._went_back_lately(now):
                    self._rewind(now)
            case "refused":
                first = max(message.first_seq, self.acked_seq + 1)
                again = message.last_seq <= self._refused_seq and self._went_back_lately(now)
                if first <= message.last_seq < self.next_seq and not again:
                    self._refused_seq = message.last_seq
                    self._rewind(now)
                    return [Refused(first, message.last_seq, message.reason)]
            case _:
                pass  # busy: the retry timer sends it again
        return []

    def _alarm(self, alarm: m.Alarm) -> list[ClientAction]:
        """Pass an alarm on once: a daemon says how things stand on every connection anew."""
        known = self._alarms.get(alarm.tag)
        news = known != (alarm.state, alarm.step)
        if known is None and alarm.state in WELL:
            news = False  # what was wrong and is over before the client came
        if not news:
            return []
        if len(self._alarms) >= MAX_ALARMS:
            self._alarms.clear()
        self._alarms[alarm.tag] = (alarm.state, alarm.step)
        return [Notify(alarm)]

    def _went_back_lately(self, now: float) -> bool:
        """Whether a NACK may be an answer to what was sent before the last rewind."""
        return now - self._rewound < NACK_QUIET_S

    def _rewind(self, now: float) -> None:
        """Go back to the first record that was not acknowledged."""
        self._in_flight.clear()
        self._in_flight_bytes = 0
        self._progress = self._rewound = now
        self.next_seq = self.acked_seq + 1

    def _goodbye(self, now: float) -> list[ClientAction]:
        """Say BYE once the last record is acknowledged."""
        if self._finishing is None or self.acked_seq < self._finishing:
            return []
        return self._say_bye(now) if self._move(ClientEvent.FINISH) else []

    def _say_bye(self, now: float) -> list[ClientAction]:
        self._asked = now
        return [Send(m.Bye(self._finishing or 0, self.books, self._lost))]

    def _silent(self) -> list[ClientAction]:
        self._move(ClientEvent.LOST)
        self._failures += 1
        ceiling = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2 ** min(self._failures, 16))
        return [Reconnect(ceiling * (0.5 + self._jitter() / 2))]

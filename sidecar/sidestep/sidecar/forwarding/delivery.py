"""One client's records on their way to the next daemon: what is sent, and what was acknowledged.

Drives a `ClientSession` as a trainer's sender does. No socket, no clock: messages go out through
`send`, what comes in is handed to `receive`, the time is passed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from sidestep.proto import Alarm, Books, ClientSession, Hello, Message, Tags
from sidestep.proto.session import (
    ClientAction,
    ClientState,
    Notify,
    Reconnect,
    Refused,
    Rejected,
    Send,
)

from .units import Unit, gap, left_out

_MAX_ALARMS: Final = 1000

_SPENT: Final = Unit(0, 0, 0, ())
"""Stands in the place of what was acknowledged, until its place is given back."""


class Delivery:
    """One client's way to the next daemon.

    Args:
        hello: how it is introduced.
        define: the messages that define its tag sets from a number on.
        send: puts a message on the wire; whether it could.
        jitter: returns a number in [0, 1).

    Attributes:
        end: the last record that was handed over.
        nbytes: of what waits for its acknowledgement.
        rejected: why the daemon will not serve this client, if so.
        reconnect_at: when to open a new connection; None while there is one.
        alarms: what the daemon has said of the run's health; whoever reads it empties it.
    """

    def __init__(
        self,
        hello: Hello,
        define: Callable[[int], Iterable[Tags]],
        send: Callable[[Message], bool],
        jitter: Callable[[], float],
    ) -> None:
        self._session = ClientSession(hello, jitter)
        self._hello = hello
        self._jitter = jitter
        self._lost: bool | None = None  # how it took its leave
        self._define = define
        self._send = send
        self._window: list[Unit] = []
        self._at = 0  # of the window: what is before it was sent
        self._acked = 0  # of the window
        self._defined = 0
        self._new_tags = True
        self.end = hello.acked_seq
        self.nbytes = 0
        self.rejected: Rejected | None = None
        self.reconnect_at: float | None = None
        self.alarms: deque[Alarm] = deque(maxlen=_MAX_ALARMS)

    @property
    def acked_seq(self) -> int:
        """Everything up to here is durable there."""
        return self._session.acked_seq

    @property
    def acked_dropped(self) -> int:
        """How many of those are counted there as dropped."""
        return self._session.acked_dropped

    @property
    def state(self) -> ClientState:
        """Where it stands with the daemon."""
        return self._session.state

    @property
    def delivered(self) -> bool:
        """Whether all that was handed over is durable there."""
        return self._session.acked_seq >= self.end

    def say(self, books: Books) -> None:
        """What the client says of itself, from now on."""
        self._session.books = books

    def take(self, unit: Unit, reason: str) -> None:
        """Hand over what comes next.

        Args:
            unit: what comes next; known records in it do no harm.
            reason: why there is nothing between `end` and it, if so.
        """
        if unit.last <= self.end:
            return
        if unit.first > self.end + 1:
            self._push(gap(self.end + 1, unit.first - 1, reason))
        self._push(unit)

    def tags_changed(self) -> None:
        """There are more tag sets than before."""
        self._new_tags = True

    def connected(self, now: float) -> None:
        """A new connection was opened."""
        self.reconnect_at = None
        self._do(self._session.connected(now), now)

    def receive(self, message: Message, now: float) -> None:
        """The daemon has said something."""
        was = self._session.state
        self._do(self._session.receive(message, now), now)
        if was is ClientState.GREETING and self._session.state is not was:
            self._defined, self._new_tags = 0, True  # another daemon may not know them
        self._forget_acknowledged()

    def finish(self, now: float, *, lost: bool) -> None:
        """Nothing will follow: say goodbye once everything is durable there."""
        self._lost = lost
        self._do(self._session.finish(max(self.end, self.acked_seq), now, lost=lost), now)

    def begin_again(self, connection: int, now: float) -> None:
        """After a rejection: as a new connection, with the number `connection`."""
        before = self._session
        hello = replace(
            self._hello,
            connection=connection,
            acked_seq=before.acked_seq,
            acked_dropped=before.acked_dropped,
        )
        self._session = ClientSession(hello, self._jitter)
        self._session.books = before.books
        self.rejected = None
        self.reconnect_at = now
        if self._lost is not None:
            self.finish(now, lost=self._lost)

    def work(self, now: float) -> None:
        """Send what may be sent; call it at least every 100 ms."""
        self._do(self._session.tick(now), now)
        if self._is_ready() and self._define_tags():
            while self._is_ready() and self._send_next(now):
                pass

    # --- inside --------------------------------------------------------------------------------

    def _is_ready(self) -> bool:
        return self._session.state is ClientState.READY

    def _push(self, unit: Unit) -> None:
        self._window.append(unit)
        self.nbytes += unit.nbytes
        self.end = unit.last

    def _define_tags(self) -> bool:
        """Say the tag sets that it does not know; whether it knows all now."""
        if self._new_tags:
            for message in self._define(self._defined):
                if not self._send(message):
                    return False
                self._defined = message.first_id + len(message.tag_sets)
            self._new_tags = False
        return True

    def _send_next(self, now: float) -> bool:
        wanted = self._session.next_seq
        window, at = self._window, self._at
        while at > self._acked and window[at - 1].last >= wanted:
            at -= 1  # it went back
        while at < len(window) and window[at].last < wanted:
            at += 1
        self._at = at
        if at == len(window) or not self._session.may_send(window[at].nbytes):
            return False
        unit = window[at]
        for message in unit.messages:
            if not self._send(message):
                return False
        self._session.sent(min(unit.first, wanted), unit.last, unit.nbytes, now)
        return True

    def _forget_acknowledged(self) -> None:
        window = self._window
        while self._acked < len(window) and window[self._acked].last <= self.acked_seq:
            self.nbytes -= window[self._acked].nbytes
            window[self._acked] = _SPENT
            self._acked += 1
        if 2 * self._acked >= len(window):
            del window[: self._acked]
            self._at = max(0, self._at - self._acked)
            self._acked = 0

    def _do(self, actions: Sequence[ClientAction], now: float) -> None:
        for action in actions:
            match action:
                case Send(message):
                    self._send(message)
                case Reconnect(delay_s):
                    self.reconnect_at = now + delay_s
                case Rejected():
                    self.rejected = action
                case Refused(first, last, reason):
                    rest = self._window[self._acked :]
                    self._window = list(left_out(rest, first, last, reason))
                    self._at = self._acked = 0
                    self.nbytes = sum(unit.nbytes for unit in self._window)
                case Notify(alarm):
                    self.alarms.append(alarm)
                case _:
                    pass  # acknowledgements are looked at in the session

"""The client's own thread: carries records from the outbox to the daemon, whatever happens to it.

It owns the socket and the session; nobody else touches either. It wakes at most every
`INTERVAL_S` while records come and every `IDLE_S` otherwise, because each wake-up takes the GIL
from the trainer; it sends slices of the outbox as they are, without looking at a record.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import zmq

from sidestep.proto import (
    Alarm,
    Batch,
    Books,
    ClientSession,
    Gap,
    Message,
    Part,
    RemoteProtocolError,
    decode,
    encode,
)
from sidestep.proto.session import (
    ClientAction,
    ClientState,
    Durable,
    Notify,
    Reconnect,
    Refused,
    Rejected,
    Send,
)
from sidestep.proto.tag_sets import definitions

from .chunks import Chunk, Slice
from .holes import Hole
from .keys import ClientKeys
from .launch import Launcher
from .link import Link
from .outbox import Outbox
from .segment import Large
from .wake import WakePipe

logger = logging.getLogger("sidestep")

INTERVAL_S: Final = 0.025
IDLE_S: Final = 0.05
_IDLE_AFTER_S: Final = 1.0
_LAST_RETRY_S: Final = 5.0
_JOIN_S: Final = 0.5
_QUIET_S: Final = 1.5  # a daemon answers a PING each second
_UNCONNECTED: Final = (ClientState.GREETING, ClientState.DISCONNECTED)
_SILENCE_S: Final = 10.0
"""After so long without a daemon the user is told, once."""


class Sender(threading.Thread):
    """Sends what the outbox holds until it is told to stop.

    Args:
        session: the client's end of the conversation.
        outbox: where the records and their tag sets are.
        endpoint: the daemon's ZeroMQ address.
        books: what to tell the daemon about this client's records.
        launcher: starts a daemon when there is none; None to never start one.
        on_alarm: called with each alarm.
        housekeeping: called at each wake-up (collects staged values while the trainer is silent).
        keys: for TCP.

    Attributes:
        strange_frames: how many frames from the daemon were not understood.
    """

    def __init__(
        self,
        session: ClientSession,
        outbox: Outbox,
        endpoint: str,
        books: Callable[[], Books],
        launcher: Launcher | None,
        on_alarm: Callable[[Alarm], None],
        housekeeping: Callable[[], None],
        keys: ClientKeys | None = None,
    ) -> None:
        super().__init__(name="sidestep-sender", daemon=True)
        self._session = session
        self._outbox = outbox
        self._endpoint = endpoint
        self._books = books
        self._launcher = launcher
        self._on_alarm = on_alarm
        self._housekeeping = housekeeping
        self._keys = keys
        self._pipe = WakePipe()
        self._started_at = 0.0
        self._stop_at = math.inf
        self._finish_seq: int | None = None
        self._tags_sent = 0
        self._awaited_seq = 0
        self._reconnect_at = 0.0
        self._retry_s = IDLE_S
        self._warned = False
        self.strange_frames = 0

    # --- called by other threads ---------------------------------------------------------

    def wake(self) -> None:
        """Do not wait for the next interval, nor with the answer to what was emitted until now."""
        self._awaited_seq = self._outbox.last_seq
        self._pipe.wake()

    def stop(self, timeout_s: float, finish_seq: int) -> bool:
        """End the thread: say BYE after record `finish_seq`, but wait no longer than `timeout_s`.

        Returns:
            Whether the daemon confirmed that it has everything.
        """
        self._stop_at = time.monotonic() + timeout_s
        self._finish_seq = finish_seq
        self.wake()
        if self.is_alive() and threading.current_thread() is not self:
            self.join(timeout_s + _JOIN_S)
        return self._session.state is ClientState.CLOSED

    @property
    def state(self) -> ClientState:
        """Where the conversation stands."""
        return self._session.state

    # --- the thread ------------------------------------------------------------------------

    def run(self) -> None:
        """Work until stopped; an error of our own must not end the delivery, so it starts over."""
        self._started_at = time.monotonic()
        context: zmq.Context[zmq.Socket[bytes]] | None = None
        try:
            while not self._over():
                try:
                    context = context or zmq.Context()
                    self._converse(context)
                except Exception as error:  # noqa: BLE001 - whatever it is, records wait
                    self._start_over(error)
        finally:
            self._pipe.close()
            if context is not None:
                context.destroy(linger=0)

    def _over(self) -> bool:
        if self._session.state is ClientState.REJECTED:
            return self._stop_at < math.inf
        return self._session.state is ClientState.CLOSED or time.monotonic() >= self._stop_at

    def _start_over(self, error: Exception) -> None:
        if self._retry_s < _LAST_RETRY_S:  # else it has been said, and nothing has changed
            logger.warning("sidestep: the sender starts over: %s: %s", type(error).__name__, error)
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)
        # As if the peer had been silent for too long.
        self._session.tick(time.monotonic() + 1e9)
        until = time.monotonic() + self._retry_s
        while time.monotonic() < until and not self._over():
            time.sleep(IDLE_S)

    def _converse(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """One connection, from HELLO until it must be thrown away."""
        link = Link(context, self._endpoint, self._keys)
        socket = link.socket
        pipe_only, both = zmq.Poller(), zmq.Poller()
        both.register(socket, zmq.POLLIN)
        for poller in (pipe_only, both):
            poller.register(self._pipe.read_fd, zmq.POLLIN)
        self._tags_sent = 0
        self._reconnect_at = 0.0
        next_pump = busy_until = 0.0
        try:
            self._do(socket, self._session.connected(time.monotonic()))
            while not self._over() and self._session.state is not ClientState.REJECTED:
                now = time.monotonic()
                link.look()
                self._look_around(now, link)
                if self._finish_seq is not None:
                    self._session.books = self._books()  # the last ones, not those of a moment ago
                    self._do(socket, self._session.finish(self._finish_seq, now))
                self._do(socket, self._session.tick(now))
                if self._reconnect_at:
                    break
                pumped = False
                if now >= next_pump:
                    if int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
                        self._receive(socket)
                    pumped = self._pump(socket, now)
                    if pumped:
                        busy_until = now + _IDLE_AFTER_S
                    pause = INTERVAL_S if now < busy_until else IDLE_S
                    next_pump = now + max(pause, self._session.pace_s)
                poller = pipe_only if pumped and not self._answer_awaited() else both
                wait_s = min(next_pump, self._stop_at) - time.monotonic()
                # Rounded up: rounded down, it would spin through the last millisecond.
                for fd, _ in poller.poll(max(0, math.ceil(1000 * wait_s))):
                    if fd is socket:
                        self._receive(socket)
                    else:
                        self._pipe.drain()
                        next_pump = 0.0
        finally:
            link.close()
        self._without_connection(link)

    def _without_connection(self, link: Link) -> None:
        """Until there may be another one, or this is over."""
        while time.monotonic() < self._reconnect_at and not self._over():
            self._look_around(time.monotonic(), link)
            time.sleep(min(IDLE_S, max(0.0, self._reconnect_at - time.monotonic())))
        while self._session.state is ClientState.REJECTED and not self._over():
            self._housekeeping()
            time.sleep(IDLE_S)  # nobody is waited for; the connection is somebody else's now

    def _answer_awaited(self) -> bool:
        """Whether what the daemon says next is wanted at once, not at the next interval."""
        session, outbox = self._session, self._outbox
        return (
            session.state is not ClientState.READY
            or self._finish_seq is not None
            or outbox.acked_seq < self._awaited_seq
            or session.next_seq <= outbox.last_seq
        )

    def _look_around(self, now: float, link: Link) -> None:
        """What is not about sending: staged values, the daemon's existence, the user."""
        self._housekeeping()
        self._session.books = self._books()
        if self._session.quiet_s(now) > _QUIET_S or self._session.state in _UNCONNECTED:
            if self._launcher is not None:
                self._launcher.ensure(now)
            if not self._warned and (link.certain or now - self._started_at > _SILENCE_S):
                self._warned = True
                why = link.refusal or f"no daemon answers at {self._endpoint}"
                start = "" if link.refusal else ". Start one with: sidestep start"
                logger.warning("sidestep: %s; metrics wait in the outbox%s", why, start)

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                frame = socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                message = decode(frame)
            except RemoteProtocolError as error:
                self._note_strange(error)
                continue
            was = self._session.state
            self._do(socket, self._session.receive(message, time.monotonic()))
            if was is ClientState.GREETING and self._session.state is ClientState.READY:
                self._tags_sent = 0  # a new conversation: nothing is defined in it yet
                self._retry_s = IDLE_S
                if self._launcher is not None:
                    self._launcher.connected()

    def _note_strange(self, error: RemoteProtocolError) -> None:
        """Count what is no message; the user is told of the first."""
        self.strange_frames += 1
        if self.strange_frames == 1:
            logger.warning(
                "sidestep: what came from %s is not understood (%s): is it a daemon of the same "
                "version? Others are counted without a word",
                self._endpoint,
                error,
            )

    def _do(self, socket: zmq.Socket[bytes], actions: Sequence[ClientAction]) -> None:
        for action in actions:
            match action:
                case Send(message):
                    self._send(socket, message)
                case Durable(seq, dropped):
                    self._outbox.release(seq, dropped)
                case Refused(first_seq, last_seq, reason):
                    logger.warning(
                        "sidestep: the daemon refused records %d to %d: %s",
                        first_seq,
                        last_seq,
                        reason,
                    )
                    self._outbox.refuse(first_seq, last_seq, reason)
                case Reconnect(delay_s):
                    self._reconnect_at = time.monotonic() + delay_s
                case Rejected(code, reason):
                    logger.warning(
                        "sidestep: the daemon refuses this client (%s): %s", code, reason
                    )
                case Notify(alarm):
                    self._on_alarm(alarm)

    # --- sending ---------------------------------------------------------------------------

    def _pump(self, socket: zmq.Socket[bytes], now: float) -> bool:
        """Send what may be sent; whether anything was."""
        sent = False
        while self._session.state is ClientState.READY:
            chunk = self._outbox.take(self._session.next_seq, self._session.may_send)
            # The tags after the records: now all are defined that the records can use.
            if chunk is None or not self._define_tags(socket):
                break
            if not self._send_chunk(socket, chunk, now):
                break
            sent = True
        return sent

    def _send_chunk(self, socket: zmq.Socket[bytes], chunk: Chunk, now: float) -> bool:
        match chunk:
            case Slice(first, last, data):
                size = len(data)
                done = self._send(socket, Batch(first, last, data))
            case Hole(first, last, reason):
                size = 0
                done = self._send(socket, Gap(first, last, reason))
            case Large(first, size):
                last = first
                done = self._send_parts(socket, chunk)
        if done:
            self._session.sent(first, last, size, now)
        return done

    def _send_parts(self, socket: zmq.Socket[bytes], large: Large) -> bool:
        for number in range(len(large.pieces)):
            offset, data = self._outbox.read_piece(large, number)
            if not self._send(socket, Part(large.seq, offset, large.total, data)):
                return False
        return True

    def _define_tags(self, socket: zmq.Socket[bytes]) -> bool:
        """Define what the daemon has not heard on this connection; False when it must wait."""
        for message in definitions(self._outbox.tag_sets.stored, self._tags_sent):
            if not self._send(socket, message):
                return False
            self._tags_sent += len(message.tag_sets)
        return True

    def _send(self, socket: zmq.Socket[bytes], message: Message) -> bool:
        """Hand a message to ZeroMQ; False when its queue is full."""
        try:
            socket.send(encode(message), zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

"""The client's only thread: carries records from the outbox to the daemon, whatever happens to it.

It owns the socket and the session; nobody else touches either. It wakes at most every
`INTERVAL_S` while records come and every `IDLE_S` otherwise, because each wake-up takes the GIL
from the trainer; it sends slices of the outbox as they are, without looking at a record.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Final

import zmq

from sidestep.proto import (
    Alarm,
    Batch,
    Books,
    ClientMessage,
    ClientSession,
    Gap,
    LocalProtocolError,
    Part,
    RemoteProtocolError,
    Tags,
    decode,
    encode,
)
from sidestep.proto.limits import MAX_FRAME_BYTES, MAX_TAG_SET_BYTES
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

from .launch import Launcher
from .outbox import Hole, Large, Outbox, Slice

logger = logging.getLogger("sidestep")

INTERVAL_S: Final = 0.01
IDLE_S: Final = 0.05
_IDLE_AFTER_S: Final = 1.0
_QUIET_S: Final = 1.5  # a daemon answers a PING each second
_UNCONNECTED: Final = (ClientState.GREETING, ClientState.DISCONNECTED)
_SILENCE_S: Final = 10.0
"""After so long without a daemon the user is told, once."""


class Sender(threading.Thread):
    """Sends what the outbox holds until it is told to stop.

    Args:
        session: the client's end of the conversation.
        outbox: where the records are.
        endpoint: the daemon's ZeroMQ address.
        tag_sets: all tag sets by id; grows while this runs.
        books: what to tell the daemon about this client's records.
        launcher: starts a daemon when there is none; None to never start one.
        on_alarm: called with each alarm.
        housekeeping: called at each wake-up (collects staged values while the trainer is silent).
    """

    def __init__(
        self,
        session: ClientSession,
        outbox: Outbox,
        endpoint: str,
        tag_sets: list[tuple[str, ...]],
        books: Callable[[], Books],
        launcher: Launcher | None,
        on_alarm: Callable[[Alarm], None],
        housekeeping: Callable[[], None],
    ) -> None:
        super().__init__(name="sidestep-sender", daemon=True)
        self.acked = threading.Condition(threading.Lock())
        self._session = session
        self._outbox = outbox
        self._endpoint = endpoint
        self._tag_sets = tag_sets
        self._books = books
        self._launcher = launcher
        self._on_alarm = on_alarm
        self._housekeeping = housekeeping
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pid = os.getpid()
        self._stop_at: float | None = None
        self._finish_seq: int | None = None
        self._tags_sent = 0
        self._reconnect_at = 0.0
        self._warned = False

    # --- called by other threads ---------------------------------------------------------

    def wake(self) -> None:
        """Do not wait for the next interval."""
        try:
            os.write(self._wake_write, b"\0")
        except OSError:
            pass  # it is full (a wake-up is on its way) or closed (the thread has gone)

    def stop(self, timeout_s: float, finish_seq: int | None) -> bool:
        """End the thread: say BYE after record `finish_seq`, but wait no longer than `timeout_s`.

        Returns:
            Whether the daemon confirmed that it has everything.
        """
        if self._pid != os.getpid() or not self.is_alive():
            return self.closed
        self._finish_seq = finish_seq
        self._stop_at = time.monotonic() + timeout_s
        self.wake()
        self.join(timeout_s + 1.0)
        return self.closed

    @property
    def closed(self) -> bool:
        """Whether the daemon confirmed that it has everything."""
        return self._session.state is ClientState.CLOSED

    @property
    def state(self) -> ClientState:
        """Where the conversation stands."""
        return self._session.state

    # --- the thread ------------------------------------------------------------------------

    def run(self) -> None:
        """Work until stopped; an error of our own must not end the delivery, so it starts over."""
        started = time.monotonic()
        context = zmq.Context()
        try:
            while not self._over():
                try:
                    self._converse(context, started)
                except (zmq.ZMQError, LocalProtocolError, OSError) as error:
                    logger.warning("sidestep: the sender starts over: %s", error)
                    self._session.tick(time.monotonic() + 1e9)  # as if the peer were silent
                    time.sleep(IDLE_S)
        finally:
            context.destroy(linger=0)
            if self._launcher is not None:
                self._launcher.forget()
            with self.acked:
                self.acked.notify_all()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _over(self) -> bool:
        if self._session.state in (ClientState.CLOSED, ClientState.REJECTED):
            return self._stop_at is not None or self._session.state is ClientState.CLOSED
        return self._stop_at is not None and time.monotonic() >= self._stop_at

    def _converse(self, context: zmq.Context[zmq.Socket[bytes]], started: float) -> None:
        """One connection, from HELLO until it must be thrown away."""
        socket = _connect(context, self._endpoint)
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        self._tags_sent = 0
        self._reconnect_at = 0.0
        next_pump = busy_until = 0.0
        try:
            self._do(socket, self._session.connected(time.monotonic()))
            while not self._over():
                now = time.monotonic()
                self._look_around(now, started)
                if self._finish_seq is not None:
                    self._do(socket, self._session.finish(self._finish_seq, now))
                self._do(socket, self._session.tick(now))
                if self._reconnect_at:
                    break
                if now >= next_pump:
                    if self._pump(socket, now):
                        busy_until = now + _IDLE_AFTER_S
                    next_pump = now + (INTERVAL_S if now < busy_until else IDLE_S)
                for fd, _ in poller.poll(max(0, int(1000 * (next_pump - time.monotonic())))):
                    if fd is socket:
                        self._receive(socket)
                    else:
                        os.read(self._wake_read, 4096)
                        next_pump = 0.0
        finally:
            socket.close(linger=0)
        while time.monotonic() < self._reconnect_at and not self._over():
            self._look_around(time.monotonic(), started)
            time.sleep(min(IDLE_S, max(0.0, self._reconnect_at - time.monotonic())))

    def _look_around(self, now: float, started: float) -> None:
        """What is not about sending: staged values, the daemon's existence, the user."""
        self._housekeeping()
        self._session.books = self._books()
        if self._session.quiet_s(now) > _QUIET_S or self._session.state in _UNCONNECTED:
            if self._launcher is not None and self._stop_at is None:
                self._launcher.ensure(now)
            if not self._warned and now - started > _SILENCE_S:
                self._warned = True
                logger.warning(
                    "sidestep: no daemon answers at %s; metrics wait in the outbox. Start one "
                    "with: sidestep start",
                    self._endpoint,
                )

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                frame = socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                message = decode(frame)
            except RemoteProtocolError as error:
                logger.debug("sidestep: not understood from the daemon: %s", error)
                continue
            was = self._session.state
            self._do(socket, self._session.receive(message, time.monotonic()))
            if was is ClientState.GREETING and self._session.state is ClientState.READY:
                self._tags_sent = 0  # a new conversation: nothing is defined in it yet
                if self._launcher is not None:
                    self._launcher.connected()

    def _do(self, socket: zmq.Socket[bytes], actions: list[ClientAction]) -> None:
        for action in actions:
            match action:
                case Send(message):
                    self._send(socket, message)
                case Durable(seq, dropped):
                    self._outbox.release(seq, dropped)
                    with self.acked:
                        self.acked.notify_all()
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
                    logger.warning("sidestep: the daemon refuses this client (%s): %s", code, reason)
                    with self.acked:
                        self.acked.notify_all()
                case Notify(alarm):
                    self._on_alarm(alarm)

    def _send(self, socket: zmq.Socket[bytes], message: ClientMessage) -> bool:
        """Hand a message to ZeroMQ; False when its queue is full."""
        try:
            socket.send(encode(message), zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def _pump(self, socket: zmq.Socket[bytes], now: float) -> bool:
        """Send what may be sent; whether anything was."""
        sent = False
        while self._session.state is ClientState.READY and self._define_tags(socket):
            chunk = self._outbox.next_chunk(self._session.next_seq)
            if chunk is None or not self._send_chunk(socket, chunk, now):
                break
            sent = True
        return sent

    def _send_chunk(self, socket: zmq.Socket[bytes], chunk: Slice | Large | Hole, now: float) -> bool:
        match chunk:
            case Slice(first, last, data):
                size, message = len(data), Batch(first, last, data)
            case Hole(first, last, reason):
                size, message = 0, Gap(first, last, reason)
            case Large(first, size):
                last, message = first, None
        if not self._session.may_send(size):
            return False
        # Before the bytes go out: from now on it is unknown whether the daemon has them.
        self._outbox.mark_sent(last)
        if message is not None:
            if not self._send(socket, message):
                return False
        elif not self._send_parts(socket, chunk):
            return False
        self._session.sent(first, last, size, now)
        return True

    def _send_parts(self, socket: zmq.Socket[bytes], large: Large | Slice | Hole) -> bool:
        assert isinstance(large, Large)
        for number in range(len(large.pieces)):
            offset, data = self._outbox.read_piece(large, number)
            if not self._send(socket, Part(large.seq, offset, large.total, data)):
                return False
        return True

    def _define_tags(self, socket: zmq.Socket[bytes]) -> bool:
        """Define what the daemon has not heard on this connection; False when it must wait."""
        while self._tags_sent < len(self._tag_sets):
            first, sets, nbytes = self._tags_sent, list[tuple[str, ...]](), 0
            for tags in self._tag_sets[first : first + 1000]:
                nbytes += sum(len(tag) * 4 + 5 for tag in tags)
                if sets and nbytes > MAX_TAG_SET_BYTES:
                    break
                sets.append(tags)
            if not self._send(socket, Tags(first, tuple(sets))):
                return False
            self._tags_sent += len(sets)
        return True


def _connect(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    # By count; the session's credit bounds the bytes.
    socket.setsockopt(zmq.SNDHWM, 1000)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
    socket.connect(endpoint)
    return socket



"""What daemon and client take, at rest and at the worst: memory, descriptors, threads, measured.

    python -m tests.chaos.bounds [--clients 1000] [--reconnects 100] [--emits 1000000]

Prints the rows of the table in README.md. Everything is real: a daemon in a sandbox, clients'
sessions over its socket, this process's own client. Resident memory counts the pages of Python's
and the libraries' files; what no other process has stands beside it, with a client's outbox.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import psutil
import zmq

from sidestep import client
from sidestep.proto import (
    Ack,
    Batch,
    Books,
    Bye,
    ByeAck,
    Hello,
    Message,
    Nack,
    Part,
    Ping,
    Pong,
    RunSpec,
    Tags,
    Welcome,
    decode,
    encode,
)
from sidestep.proto.records import Scalars, encode_scalars
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

from .runner.hostile import junk_connections, junk_frames

MB = 1e6
_ANSWER_S = 60.0
_PARTS = 200


@dataclass(frozen=True)
class Use:
    """What a process takes.

    Attributes:
        rss_mb: resident memory, in 1e6 bytes.
        private_mb: of that, what is its own.
        descriptors: open files and sockets.
        threads: of all libraries.
    """

    rss_mb: float
    private_mb: float
    descriptors: int
    threads: int

    def __str__(self) -> str:
        return (
            f"{self.rss_mb:.0f} MB ({self.private_mb:.0f} private), "
            f"{self.descriptors} descriptors, {self.threads} threads"
        )


def use_of(pid: int) -> Use:
    """What the process takes now."""
    process = psutil.Process(pid)
    memory = process.memory_full_info()
    return Use(memory.rss / MB, memory.uss / MB, process.num_fds(), process.num_threads())


class Peak(threading.Thread):
    """The most that a process takes in a time."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
        self._pid = pid
        self.most = use_of(pid)

    def run(self) -> None:
        """Look ten times a second."""
        while not self._over.wait(0.1):
            now = use_of(self._pid)
            self.most = Use(
                max(self.most.rss_mb, now.rss_mb),
                max(self.most.private_mb, now.private_mb),
                max(self.most.descriptors, now.descriptors),
                max(self.most.threads, now.threads),
            )

    def stop(self) -> Use:
        """The most that there was."""
        self._over.set()
        self.join()
        return self.most


# --- the daemon ----------------------------------------------------------------------------------


class Session:
    """A client's session by hand: little of it, so that a thousand fit into a process."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, spec: RunSpec, number: int
    ) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)
        self._hello = Hello(os.urandom(16), 1 + number, 1, spec, rank=number)

    def greet(self) -> None:
        """Introduce it, and send one batch: 100 records of one number."""
        self._socket.send(encode(self._hello))
        self._until(Welcome)
        self._socket.send(encode(Tags(0, (("loss",),))))
        records = [encode_scalars(Scalars(0, s, 1, (0.5,))) for s in range(100)]
        self._socket.send(encode(Batch(1, 100, b"".join(records))))

    def await_durable(self) -> None:
        """Wait until the daemon has acknowledged all."""
        while True:
            answer = self._until(Ack)
            if isinstance(answer, Ack) and answer.durable_seq == 100:
                return

    def speak(self, message: Message, answer: type[Message]) -> None:
        """Say something until it is answered: who was silent for too long says HELLO first."""
        while True:
            self._socket.send(encode(message))
            if isinstance(self._until(answer, Nack), answer):
                return
            self._hello = replace(self._hello, connection=self._hello.connection + 1, acked_seq=100)
            self._socket.send(encode(self._hello))
            self._until(Welcome)

    def leave(self) -> None:
        """Say goodbye."""
        self.speak(Bye(100, Books(100)), ByeAck)
        self._socket.close(linger=0)

    def _until(self, *kinds: type[Message]) -> Message:
        while True:
            assert self._socket.poll(1000 * _ANSWER_S), f"none of {kinds}"
            message = decode(self._socket.recv())
            if isinstance(message, kinds):
                return message


def daemon_with_clients(sandbox: Sandbox, pid: int, many: int) -> Iterator[tuple[str, Use]]:
    """Many clients of one run, each of which has emitted; and after they have gone."""
    spec = RunSpec("many", str(sandbox.logs))
    with zmq.Context() as context:
        context.set(zmq.MAX_SOCKETS, many + 100)
        sessions = [
            Session(context, sandbox.paths.data_endpoint, spec, number) for number in range(many)
        ]
        for session in sessions:
            session.greet()
        for session in sessions:
            session.await_durable()
        for session in sessions:
            session.speak(Ping(Books(100)), Pong)
        yield f"daemon, {many:,} clients connected", use_of(pid)
        for session in sessions:
            session.leave()
    sandbox.await_run("many", clients=0)
    sandbox.drain()
    yield "… after they have gone", use_of(pid)


def daemon_with_hostile_peers(sandbox: Sandbox, pid: int, rounds: int) -> Iterator[tuple[str, Use]]:
    """Junk frames and connections, and records in parts that never end."""
    path = sandbox.paths.data_endpoint.removeprefix("ipc://")
    peak = Peak(pid)
    peak.start()
    open_ones = []
    for number in range(rounds):
        junk_frames(sandbox.paths.data_endpoint, sandbox.logs, number)
        open_ones += junk_connections(path, random.Random(number))
        _endless_record(sandbox, number)
    yield f"daemon, hostile peers ({rounds} rounds), the most", peak.stop()
    for one in open_ones:
        one.close()
    # Silent peers are forgotten after ten seconds.
    wait_until(lambda: _clients(sandbox) == 0, 60, "they are still there", 0.2)
    yield "… after they have gone", use_of(pid)


def _endless_record(sandbox: Sandbox, number: int) -> None:
    """60 MB of a record that is never complete."""
    with zmq.Context() as context:
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.connect(sandbox.paths.data_endpoint)
        spec = RunSpec("hostile", str(sandbox.logs))
        socket.send(encode(Hello(os.urandom(16), 1 + number, 1, spec)))
        data = bytes(300 << 10)
        for part in range(_PARTS):
            socket.send(encode(Part(1, part * len(data), 64 << 20, data)))
        socket.poll(1000)
        socket.close(linger=1000)


def _clients(sandbox: Sandbox) -> int:
    return sum(run["clients"] for run in sandbox.status(30)["runs"])


def daemon_after_reconnects(sandbox: Sandbox, pid: int, many: int) -> Iterator[tuple[str, Use]]:
    """Clients of this process that come, emit and go, one after the other."""
    before: Use | None = None
    for number in range(many + 5):
        made = client.connect("again", autostart=False, outbox_bytes=1 << 20)
        made.emit({"a": 1.0}, step=number)
        assert made.finish(_ANSWER_S)
        if number == 4:  # what is loaded once is loaded
            sandbox.drain()
            before = use_of(pid)
    sandbox.drain()
    assert before is not None
    yield "daemon, after 5 clients came and went", before
    yield f"… after {many} more", use_of(pid)


# --- the client ----------------------------------------------------------------------------------


def client_alone(sandbox: Sandbox, emits: int) -> Iterator[tuple[str, Use]]:
    """A client of this process whose daemon is gone, for as many emits as an hour may bring."""
    mine = os.getpid()
    yield "trainer's process before `connect`", use_of(mine)
    made = client.connect("alone", autostart=False)
    made.emit({"a": 1.0}, step=0)
    yield "… with a client, at rest", use_of(mine)
    peak = Peak(mine)
    peak.start()
    values = {f"train/v{j}": j / 3 for j in range(20)}
    text = client.Text("x" * 50_000)
    for step in range(1, emits):
        made.emit(values, step=step)
        if step % 1000 == 0:
            made.emit({"note": text}, step=step)
    most = peak.stop()
    stats = made.stats()
    (outbox,) = sandbox.outboxes()
    assert stats.emitted == stats.held + stats.dropped, stats
    room = outbox.stat().st_size / MB
    what = f"daemon gone for {emits:,} emits of 20 numbers, outbox {room:.0f} MB"
    yield f"… {what} ({stats.dropped:,} dropped), the most", most
    made.finish(0)


def client_after_reconnects(sandbox: Sandbox, many: int) -> Iterator[tuple[str, Use]]:
    """A client of this process whose daemon is killed again and again."""
    mine = os.getpid()
    made = client.connect("steady", autostart=False, outbox_bytes=1 << 20)
    for number in range(many + 3):
        daemon = sandbox.serve()
        made.emit({"a": 1.0}, step=number)
        assert made.flush(_ANSWER_S)
        daemon.kill()
        if number == 2:
            yield "client, after 3 daemons were killed", use_of(mine)
    yield f"… after {many} more", use_of(mine)
    made.finish(0)


# --- all of it -------------------------------------------------------------------------------


@contextmanager
def at_home(sandbox: Sandbox) -> Iterator[None]:
    """This process's clients live in the sandbox."""
    before = dict(os.environ)
    os.environ.update(sandbox.variables())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main(argv: Sequence[str]) -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.bounds", description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--reconnects", type=int, default=100)
    parser.add_argument("--emits", type=int, default=1_000_000)
    parser.add_argument("--hostile", type=int, default=20)
    arguments = parser.parse_args(argv)
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {sys.version.split()[0]}")
    print("| what | takes |\n|---|---|")
    with Sandbox() as sandbox, at_home(sandbox):
        pid = sandbox.serve().pid
        _print(iter([("daemon, no client", use_of(pid))]))
        _print(daemon_with_clients(sandbox, pid, arguments.clients))
        _print(daemon_after_reconnects(sandbox, pid, arguments.reconnects))
        _print(daemon_with_hostile_peers(sandbox, pid, arguments.hostile))
    with Sandbox() as sandbox, at_home(sandbox):
        _print(client_alone(sandbox, arguments.emits))
    with Sandbox() as sandbox, at_home(sandbox):
        _print(client_after_reconnects(sandbox, arguments.reconnects))
    return 0


def _print(rows: Iterator[tuple[str, Use]]) -> None:
    for what, use in rows:
        print(f"| {what} | {use} |", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

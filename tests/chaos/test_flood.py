"""More clients, connections and descriptors than there may be: the cap is said, and nobody dies."""

from __future__ import annotations

import logging
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import zmq

from sidestep.proto import Ack, Reject, RunSpec, Welcome
from tests.support.beside import Beside
from tests.support.fixtures import Connect
from tests.support.hostile import MIB, MemoryOf, Peer, batch
from tests.support.sandbox import SIDESTEP, Sandbox
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

FILES = 256
"""A hard limit of open files with which libzmq's listener would end the process."""


@pytest.fixture
def scarce(sandbox: Sandbox) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that can have few descriptors."""
    log = (sandbox.root / "scarce.log").open("wb")
    with log, subprocess.Popen(
        ["prlimit", f"--nofile={FILES}:{FILES}", *SIDESTEP, "serve"],
        cwd=sandbox.work,
        env=sandbox.env(),
        stdout=log,
        stderr=log,
    ) as process:  # fmt: skip
        sandbox.await_daemon()
        yield process
        assert process.poll() is None
        process.terminate()
        assert process.wait(60) == 0


def connections(endpoint: str, many: int) -> list[socket.socket]:
    """So many connections that say nothing; what is ended at once counts, too."""
    made = []
    for _ in range(many):
        one = socket.socket(socket.AF_UNIX)
        made.append(one)
        deadline = time.monotonic() + 20
        while True:
            one.setblocking(False)
            try:
                one.connect(endpoint.removeprefix("ipc://"))
                break
            except BlockingIOError:  # more are waiting than there is room for
                assert time.monotonic() < deadline
                time.sleep(0.001)
    return made


@pytest.mark.parametrize(
    "where",
    ["data", *(pytest.param(other, marks=pytest.mark.slow) for other in ("control", "feed"))],
)
def test_more_connections_than_descriptors(
    sandbox: Sandbox, scarce: subprocess.Popen[bytes], connect: Connect, where: str
) -> None:
    beside = Beside(sandbox, connect("beside"))
    beside.served()
    endpoint = str(getattr(sandbox.paths, f"{where}_endpoint"))
    held = connections(endpoint, 600)
    # All of them are held, and everything goes on.
    beside.served()
    assert sandbox.status(30)["daemon"]["pid"] == scarce.pid
    late = connect("late")
    late.emit({"x": 1.0}, step=0)
    assert late.flush(30), late.stats()
    with suppress(OSError):
        for one in held:
            one.close()
    assert late.finish(30)
    beside.assert_whole()


def test_more_clients_than_descriptors(
    sandbox: Sandbox, scarce: subprocess.Popen[bytes], connect: Connect
) -> None:
    """As many as can be are served; the others are told why not, and are no burden."""
    beside = Beside(sandbox, connect("beside"))
    beside.served()
    spec = RunSpec("crowd", str(sandbox.logs))
    with zmq.Context() as context:
        peers = [
            Peer(context, sandbox.paths.data_endpoint, spec, i.to_bytes(16, "big"))
            for i in range(1, 201)
        ]
        for peer in peers:
            peer.say(peer.hello)
        answers = [peer.next(60) for peer in peers]
        served = [p for p, a in zip(peers, answers, strict=True) if isinstance(a, Welcome)]
        told = [answer for answer in answers if isinstance(answer, Reject)]
        assert len(served) + len(told) == 200
        assert {answer.code for answer in told} == {"full"}
        assert f"its limit of open files is {FILES}: ulimit -n" in told[0].reason
        print(f"{len(served)} served beside one, {len(told)} rejected")
        assert 64 <= len(served) < FILES // 2
        for peer in served:
            peer.greet("x")
            assert isinstance(peer.ask(batch(1, 3)), Ack)
        beside.served()
        assert sandbox.status(30)["daemon"]["refused"]["clients"] == {"full": len(told)}
        for peer in peers:
            peer.close()
    sandbox.drain()
    found = sandbox.run_status("crowd")
    assert found
    assert found["records"]["durable"] == 3 * len(served)
    beside.assert_whole()


def test_one_client_too_many(
    sandbox: Sandbox, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """Ours: it is told, once, and trains on; what it has emitted is delivered when it has gone."""
    sandbox.serve(SIDESTEP_MAX_CLIENTS="2")
    first, second = connect("one"), connect("two")
    for made in (first, second):
        made.emit({"x": 1.0}, step=0)
        assert made.flush(30)
    with caplog.at_level(logging.WARNING, "sidestep"):
        third = connect("three")
        wait_until(lambda: "refuses this client (full)" in caplog.text, 30, lambda: caplog.text)
    for step in range(1000):
        third.emit({"x": step / 7}, step=step)
    assert (third.stats().held, third.stats().dropped) == (1000, 0)
    assert not third.finish(0.2)
    sandbox.drain()  # its outbox
    wait_until(lambda: (sandbox.run_status("three") or {}).get("state") == "finished", 30, "gone")
    assert sandbox.run_status("three")["records"]["durable"] == 1000  # type: ignore[index]
    for made in (first, second):
        made.emit({"x": 2.0}, step=1)
        assert made.finish(30)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_clients_and_a_flood(sandbox: Sandbox, connect: Connect) -> None:
    """1,024 clients are served at once, beside thousands of connections that come and go."""
    daemon = sandbox.serve()
    memory = MemoryOf(daemon.pid)
    beside = Beside(sandbox, connect("beside"))
    beside.served(60)
    spec = RunSpec("crowd", str(sandbox.logs))
    with zmq.Context() as context:
        context.set(zmq.MAX_SOCKETS, 4096)
        peers = [
            Peer(context, sandbox.paths.data_endpoint, spec, i.to_bytes(16, "big"))
            for i in range(1, 1101)
        ]
        for peer in peers:
            peer.say(peer.hello)
        answers = [peer.next(120) for peer in peers]
        served = [p for p, a in zip(peers, answers, strict=True) if isinstance(a, Welcome)]
        assert len(served) == 1023
        assert all(isinstance(a, Reject) for a in answers if not isinstance(a, Welcome))
        for _ in range(5):
            for one in connections(sandbox.paths.data_endpoint, 1000):
                one.close()
            beside.served(60)
        # Some may have been silent for longer than a client may be: it says HELLO again.
        for peer in served:
            peer.greet("x")
            peer.say(batch(1, 10))
        for peer in served:
            answer = peer.next(120)
            assert isinstance(answer, Ack), answer
        beside.served(60)
        print(f"{len(served)} served, grown by {memory.look() / MIB:.0f} MiB")
        assert memory.look() < 200 * MIB
        for peer in peers:
            peer.close()
    sandbox.drain(300)
    found = sandbox.run_status("crowd")
    assert found
    assert found["records"]["durable"] == 10 * len(served)
    beside.assert_whole()

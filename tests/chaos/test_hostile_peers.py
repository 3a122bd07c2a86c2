"""Peers that speak no protocol, another version or under somebody's name, or without end."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import zmq

from sidestep.proto import Hello, Ping, Pong, Reject, RunSpec, Welcome, encode
from tests.support.beside import Beside
from tests.support.hostile import (
    GREETING,
    LONG,
    MIB,
    MORE,
    MemoryOf,
    Peer,
    Raw,
    await_refused,
    head,
    ready,
    refused,
)
from tests.support.sandbox import Daemon, Sandbox
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as made:
        yield made


def test_two_live_clients_with_one_uuid(
    sandbox: Sandbox, beside: Beside, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    spec = RunSpec("twins", str(sandbox.logs))
    first, second = (Peer(context, sandbox.paths.data_endpoint, spec) for _ in range(2))
    first.greet("x")
    second.hello = replace(second.hello, instance=2)
    answer = second.ask(second.hello)
    assert isinstance(answer, Reject)
    assert answer.code == "duplicate_client"
    assert "connect() in each process" in answer.reason
    assert first.ask(Ping()) == Pong()  # it goes on as if nothing had been
    await_refused(sandbox, "clients", duplicate_client=1)
    beside.served()
    # Where the first is gone, the second is no twin.
    first.close()
    wait_until(lambda: isinstance(second.ask(second.hello), Welcome), 20, "no welcome", 0.5)
    second.close()


def test_a_client_of_another_version(
    sandbox: Sandbox, beside: Beside, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    spec = RunSpec("newer", str(sandbox.logs))
    peer = Peer(context, sandbox.paths.data_endpoint, spec, min_version=2, max_version=7)
    answer = peer.ask(peer.hello)
    assert isinstance(answer, Reject)
    assert answer.code == "version"
    assert "speaks versions 2 to 7" in answer.reason
    peer.socket.send(b"SDS\x09" + encode(peer.hello)[4:])
    answer = peer.next()
    assert isinstance(answer, Reject)
    assert "wire version 9" in answer.reason
    await_refused(sandbox, "clients", version=1)
    assert refused(sandbox, "frames") == {"version": 1}
    assert sandbox.run_status("newer") is None  # nothing was made of it
    beside.served()
    peer.close()


OLD = bytes([0x01, 0x00])  # ZMTP 1: an anonymous identity


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "no ZeroMQ peer"),
        (OLD, "no ZeroMQ peer"),
        (GREETING[:10] + b"\x01\x00" + GREETING[12:], "before version 3"),
        (GREETING[:12] + b"CURVE".ljust(20, b"\0") + GREETING[32:], "mechanism"),
        (GREETING + b"\x00\x05hello", "before the READY"),
        (GREETING + ready(b"PUB"), "a PUB socket"),
        (GREETING + ready() + b"\x80\x05hello", "flags 128"),
        (GREETING + ready() + b"\x05\x05hello", "flags 5"),
    ],
    ids=["http", "zmtp1", "zmtp2", "curve", "hasty", "pub", "flags", "more-command"],
)
def test_bytes_that_are_no_protocol(
    sandbox: Sandbox, daemon: Daemon, said: bytes, why: str
) -> None:
    with Raw(sandbox.paths.data_endpoint) as raw:
        raw.say(said)
        raw.heard()  # it is closed, at once
    await_refused(sandbox, "frames", no_protocol=1)
    (sample,) = sandbox.state.glob("quarantine/*.bin")
    assert said.endswith(sample.read_bytes()) or sample.read_bytes() == said
    assert why in sample.with_suffix(".txt").read_text()
    assert "no_protocol" in daemon.said()


def test_a_zeromq_peer_that_says_something_else(
    sandbox: Sandbox, beside: Beside, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    peer = Peer(context, sandbox.paths.data_endpoint, RunSpec("r", "/nowhere"))
    peer.socket.send(b"\x89PNG\r\n")
    answer = peer.next()
    assert isinstance(answer, Reject)
    assert (answer.code, answer.reason) == (
        "no_protocol",
        "the frame does not begin as sidestep's do",
    )
    beside.served()
    await_refused(sandbox, "frames", no_protocol=1)
    peer.close()


@pytest.mark.parametrize("size", [MIB + 1, 2 << 30, (1 << 64) - 1], ids=["1MiB+1", "2GiB", "2^64"])
def test_a_frame_that_is_too_large(
    sandbox: Sandbox, daemon: Daemon, beside: Beside, size: int
) -> None:
    memory = MemoryOf(daemon.pid)
    with Raw(sandbox.paths.data_endpoint) as raw:
        raw.introduce().say(head(0, size) + bytes(4096))
        for _ in range(200):
            if not raw.say(bytes(MIB)):
                break
            memory.look()
        else:
            pytest.fail("it could go on")
        assert f"a frame of {size} bytes, at most {MIB}".encode() in raw.heard()
    await_refused(sandbox, "frames", too_large=1)
    assert memory.look() < 16 * MIB
    beside.served()


@pytest.mark.parametrize("part_bytes", [MIB, 1], ids=["1MiB", "1B"])
def test_a_message_without_end(
    sandbox: Sandbox, daemon: Daemon, beside: Beside, part_bytes: int
) -> None:
    memory = MemoryOf(daemon.pid)
    times = 10
    part = head(MORE, part_bytes) + bytes(part_bytes)
    many = part * max(1, MIB // len(part))
    for _ in range(times):
        with Raw(sandbox.paths.data_endpoint) as raw:
            raw.introduce()
            for _ in range(100):
                if not raw.say(many):
                    break
                memory.look()
            else:
                pytest.fail("it could go on")
        beside.emit()
    await_refused(sandbox, "frames", multipart=times)
    print(f"grown by {memory.look() / MIB:.1f} MiB at the most")
    assert memory.look() < 16 * MIB
    beside.served()


def test_frames_that_never_become_whole(sandbox: Sandbox, daemon: Daemon, beside: Beside) -> None:
    """Two hundred connections with a megabyte each, less a byte: memory is bounded for all."""
    memory = MemoryOf(daemon.pid)
    raws = [Raw(sandbox.paths.data_endpoint).introduce() for _ in range(200)]
    for raw in raws:
        raw.say(head(0, MIB) + bytes(MIB - 1))
        memory.look()
    beside.served()
    wait_until(lambda: refused(sandbox, "frames").get("too_slow", 0) >= 60, 20, sandbox.status)
    print(f"grown by {memory.look() / MIB:.1f} MiB at the most")
    assert memory.look() < 192 * MIB
    for raw in raws:
        raw.socket.close()


HUGE = """
import json, resource, sys
import numpy as np, torch
from sidestep import client

made = client.connect("beside-2", autostart=False)
made.emit({"a": 1.0, "small": client.Histogram(np.zeros(1000, np.float32))}, step=0)
made.flush(20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
many = 2 << 30  # bytes; nothing of them is touched, so nothing of them is there
for step, value in enumerate([
    client.Histogram(np.empty(many // 4, np.float32)),
    client.Histogram(torch.empty(many // 2, dtype=torch.bfloat16)),
    client.Image(np.empty((many // 3 // 16384, 16384, 3), np.uint8)),
    client.Text("x" * (many // 8)),
], 1):
    made.emit({"huge": value, "a": float(step)}, step=step)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
done = made.finish(20)
s = made.stats()
print(json.dumps({"grown_kib": grown, "finish": done, "acked": s.acked, "rejected": s.rejected,
    "dropped": s.dropped}))
"""


def test_a_value_of_two_gigabytes(sandbox: Sandbox, daemon: Daemon, beside: Beside) -> None:
    code = HUGE.replace("many // 8", "1 << 28")  # a text is there: 256 MiB of it
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=sandbox.env(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = __import__("json").loads(done.stdout)
    print(found)
    assert found["finish"]
    assert (found["acked"], found["rejected"], found["dropped"]) == (6, 4, 0)
    assert found["grown_kib"] < 300 << 10  # the text itself, and no copy of anything
    assert "this outbox takes up to" in done.stderr
    beside.served()
    assert sandbox.run_status("beside-2")["records"]["rejected"] == 4  # type: ignore[index]


def test_hello_of_every_wrong_shape(
    sandbox: Sandbox, beside: Beside, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    """What a HELLO may not say is refused by its name, and makes no run."""
    import msgpack

    good: dict[str, Any] = {
        "uuid": b"u" * 16, "instance": 1, "connection": 1,
        "run": {"name": "r", "log_dir": str(sandbox.logs)},
    }  # fmt: skip
    peer = Peer(context, sandbox.paths.data_endpoint, RunSpec("r", "/nowhere"))
    wrong: list[dict[str, Any]] = [
        {"uuid": b"short"}, {"uuid": "u" * 16}, {"instance": -1}, {"connection": 1 << 63},
        {"run": None}, {"run": {"name": "r"}}, {"run": {"name": 5, "log_dir": "/"}},
        {"run": {"name": "x" * 4097, "log_dir": "/"}}, {"rank": 0.5}, {"world_size": 0},
        {"device_uuids": ["x"] * 1001}, {"run": {"name": "r", "log_dir": "/a\0b"}},
        {"run": {"name": "r", "log_dir": "/", "config": {"x": "y" * 300_000}}},
    ]  # fmt: skip
    for change in wrong:
        peer.socket.send(b"SDS\x01" + msgpack.packb(["hello", {**good, **change}]))
        answer = peer.next()
        assert type(answer).__name__ == "Nack", (change, answer)
        assert "hello." in answer.reason  # type: ignore[union-attr]
    assert sandbox.run_status("r") is None
    wait_until(lambda: sum(refused(sandbox, "frames").values()) == len(wrong), 20, sandbox.status)
    peer.close()


def test_half_of_everything(sandbox: Sandbox, beside: Beside) -> None:
    """A conversation that ends after any byte leaves nothing behind."""
    hello = encode(Hello(b"c" * 16, 1, 1, RunSpec("half", str(sandbox.logs))))
    whole = GREETING + ready() + bytes([LONG]) + struct.pack(">Q", len(hello)) + hello
    for cut in range(0, len(whole), 7):
        with Raw(sandbox.paths.data_endpoint) as raw:
            raw.say(whole[:cut])
    beside.served()
    assert sandbox.run_status("half") is None
    assert refused(sandbox, "frames") == {}

"""The gates: a peer over TCP whose message never ends costs bounded memory."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from sidestep.sidecar.peers.gates import Gates
from sidestep.sidecar.peers.refusals import Refusals
from sidestep.sidecar.peers.tcp_door import TcpDoor
from tests.support.hostile import GREETING, MIB, MORE, MemoryOf, head, ready
from tests.support.waiting import wait_until


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="gate", dir="/tmp") as made:
        yield Path(made)


def flood(port: int, stop: threading.Event) -> None:
    """Parts of a message that never ends, over ever new connections."""
    part = head(MORE, MIB) + bytes(MIB)
    while not stop.is_set():
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as raw:
                raw.sendall(GREETING + ready())
                while not stop.is_set():
                    raw.sendall(part)
        except OSError:
            time.sleep(0.01)


def test_a_message_without_end_over_tcp(port: int, folder: Path) -> None:
    said: list[str] = []
    refusals = Refusals(None, said.append)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    endpoint = f"tcp://127.0.0.1:{port}"
    gates = Gates(
        [f"ipc://{folder}/d.sock"],
        lambda: TcpDoor(context, endpoint, None, said.append),
        8,
        refusals,
        growth_bytes=64 * MIB,
    )
    client = context.socket(zmq.DEALER)
    client.setsockopt(zmq.RECONNECT_IVL, 20)
    client.connect(endpoint)
    here = context.socket(zmq.DEALER)
    here.connect(f"ipc://{folder}/d.sock")
    came: list[bytes] = []
    memory = MemoryOf(os.getpid())
    stop = threading.Event()
    hostile = threading.Thread(target=flood, args=(port, stop))
    hostile.start()
    try:
        many = 0

        def served() -> bool:
            nonlocal many
            came.extend(frame for _, frame in gates.receive(10, 100, MIB))
            memory.look()
            if many < 300:
                many += 1
                here.send(struct.pack("<I", many))
            return refusals.frames >= 3 and many == 300 and len(came) >= 300

        wait_until(served, 60, lambda: f"{said} {len(came)}", 0.001)
    finally:
        stop.set()
        # Whoever floods must find somebody who reads, or nobody.
        while hostile.is_alive():
            gates.receive(10, 100, MIB)
            hostile.join(0.01)
    assert came == [struct.pack("<I", i) for i in range(1, 301)]
    print(f"grown by {memory.grown_bytes / MIB:.0f} MiB at the most")
    assert memory.grown_bytes < 1024 * MIB
    # Recovery is clean: over TCP, too.
    came.clear()
    client.send(b"after")

    def arrived() -> bool:
        came.extend(frame for _, frame in gates.receive(10, 100, MIB))
        return b"after" in came

    wait_until(arrived, 20, lambda: said)
    assert any("all TCP connections are closed" in line for line in said)
    gates.close()
    for one in (client, here):
        one.close(linger=0)
    context.destroy(linger=0)


def test_somebodys_file_is_left_alone(folder: Path) -> None:
    own, chosen = folder / "d.sock", folder / "notes.txt"
    own.write_text("left by a daemon")
    chosen.write_text("a year's work")
    with pytest.raises(FileExistsError, match="a file is there"):
        Gates([f"ipc://{own}", f"ipc://{chosen}"], None, 8, Refusals(None, print))
    assert chosen.read_text() == "a year's work"
    gates = Gates([f"ipc://{own}"], None, 8, Refusals(None, print))
    assert own.is_socket()
    gates.close()

"""A daemon that starts with a large backlog answers first, in memory that does not grow with it."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

import psutil
import pytest

from sidestep.proto import RunSpec
from sidestep.proto.records import Scalars, encode_scalars
from sidestep.sidecar.journal.writer import ClientRow, Journal
from tests.support.fixtures import Connect
from tests.support.sandbox import Sandbox

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

MIB = 1 << 20
TAGS = tuple(f"v{i}" for i in range(120))
SMALL, LARGE = 16 * MIB, 256 * MIB
HUGE = int(os.environ.get("BACKLOG_GIB", "10")) << 30
GROWTH = 1.5
"""A daemon's and its workers' memory with sixteen times the backlog, at most."""

FIRST_ACK_S = 20.0  # of a machine that others use, too


def fill(sandbox: Sandbox, nbytes: int) -> int:
    """Leave a backlog of so many bytes of numbers to the next daemon; how many records."""
    sandbox.state.mkdir(mode=0o700, exist_ok=True)
    journal = Journal(str(sandbox.state / "journal.sqlite"))
    records = 1000
    block = b"".join(
        encode_scalars(Scalars(0, step, 10**18 + step, tuple(step + i / 7 for i in range(120))))
        for step in range(records)
    )
    journal.begin()
    run_id = journal.put_run(RunSpec("backlog", str(sandbox.logs)))
    client = ClientRow(0, b"u" * 16, run_id, 0, 0, 1, "finished", 0, 0, 0, 0, records)
    client.id = journal.put_client(client)
    journal.put_tag_set(client.id, 0, TAGS)
    journal.commit()
    rows = nbytes // len(block)
    for first in range(0, rows, 16):
        journal.begin()
        for _ in range(min(16, rows - first)):
            journal.append(run_id, client.id, records, block)
        client.durable_seq = (first + 16) * records
        journal.put_client(client)
        journal.commit()
    journal.close()
    return rows * records


@dataclass
class Seen:
    """What was seen of a daemon with a backlog.

    Attributes:
        ready_s: until it said that it is ready.
        first_ack_s: until what a new client emitted was durable, from then on.
        peak_bytes: of the daemon and its workers together, in private memory.
        samples: seconds, bytes, records still to be written.
    """

    ready_s: float
    first_ack_s: float
    peak_bytes: int
    samples: list[tuple[float, int, int]]


def memory(pid: int) -> int:
    """Bytes of a process and its children that are theirs alone."""
    found = 0
    with suppress(psutil.Error):
        own = psutil.Process(pid)
        for process in (own, *own.children(recursive=True)):
            with suppress(psutil.Error):
                found += process.memory_full_info().uss
    return found


def observe(sandbox: Sandbox, connect: Connect, left: int, seconds: float) -> Seen:
    """Serve a backlog until only so many records of all sinks are left, or for so long."""
    began = time.monotonic()
    daemon = sandbox.serve()
    ready_s = time.monotonic() - began
    peak = [0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            peak[0] = max(peak[0], memory(daemon.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        began = time.monotonic()
        made = connect("new")
        made.emit({"a": 1.0}, step=0)
        assert made.flush(120)
        first_ack_s = time.monotonic() - began
        samples: list[tuple[float, int, int]] = []
        lag = left + 1
        while lag > left and time.monotonic() - began < seconds:
            time.sleep(0.5)
            status = sandbox.run_status("backlog")
            lag = sum(s["lag_records"] for s in status["sinks"]) if status else left + 1
            samples.append((time.monotonic() - began, memory(daemon.pid), lag))
    finally:
        over.set()
        watcher.join()
    daemon.kill()
    return Seen(ready_s, first_ack_s, peak[0], samples)


def show(seen: Seen, backlog: int) -> None:
    print(
        f"{backlog / MIB:.0f} MiB: ready after {seen.ready_s:.2f} s, first acknowledgement after "
        f"{seen.first_ack_s:.2f} s, at most {seen.peak_bytes / MIB:.0f} MiB of memory"
    )
    for at, nbytes, lag in seen.samples[:: max(1, len(seen.samples) // 10)]:
        print(f"  {at:5.1f} s: {nbytes / MIB:4.0f} MiB, {lag} records to be written")


def test_memory_does_not_grow_with_the_backlog(connect: Connect) -> None:
    seen: dict[int, Seen] = {}
    for backlog in (SMALL, LARGE):
        with Sandbox() as sandbox, pytest.MonkeyPatch.context() as patch:
            for name, value in sandbox.variables().items():
                patch.setenv(name, value)
            records = fill(sandbox, backlog)
            # As many as the small one has, three times over: by then all that grows has grown.
            written = min(records, 3 * records * SMALL // backlog)
            seen[backlog] = observe(sandbox, connect, 2 * (records - written), 60.0)
            show(seen[backlog], backlog)
    assert seen[LARGE].first_ack_s < FIRST_ACK_S
    assert seen[LARGE].peak_bytes < GROWTH * seen[SMALL].peak_bytes


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_gibibytes(sandbox: Sandbox, connect: Connect) -> None:
    began = time.monotonic()
    fill(sandbox, HUGE)
    print(f"written in {time.monotonic() - began:.0f} s")
    seen = observe(sandbox, connect, 0, float(os.environ.get("BACKLOG_S", "120")))
    show(seen, HUGE)
    assert seen.first_ack_s < FIRST_ACK_S
    assert seen.peak_bytes < 600 * MIB

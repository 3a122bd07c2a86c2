"""A `tail` that nobody reads: it skips, says how much, and delays nobody."""

from __future__ import annotations

import json
import re
import select
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import msgpack
import pytest
import zmq

from sidestep import client
from sidestep.proto import RunSpec
from sidestep.proto.records import Scalars, encode_scalars
from sidestep.sidecar.cli.follow import Follower
from sidestep.sidecar.journal.reader import JournalReader
from sidestep.sidecar.journal.writer import ClientRow, Journal
from sidestep.sidecar.live.feed import STATUS_TOPIC, Feed
from sidestep.sidecar.peers.observers import feed_door
from tests.support.fixtures import Connect
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

RUN = "deaf"
CLIENTS = 16
ROWS = 1500
PER_ROUND = 40


class Listener:
    """A `tail --json` whose output is read from `read` on, and not before."""

    def __init__(self, sandbox: Sandbox) -> None:
        # With history, what came before it began to listen is shown, too.
        self.process = sandbox.popen("tail", RUN, "--json", "--history", "1000")
        self.points: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._threads: list[threading.Thread] = []
        self._follow(self.process.stderr, self.notes.append)

    def read(self) -> None:
        """Begin to read."""
        self._follow(self.process.stdout, lambda line: self.points.append(json.loads(line)))

    def _follow(self, stream: IO[str] | None, take: Callable[[str], None]) -> None:
        assert stream

        def every_line() -> None:
            for line in stream:
                take(line)

        self._threads.append(threading.Thread(target=every_line, daemon=True))
        self._threads[-1].start()

    def stop(self) -> None:
        """As Ctrl-C does; all that it has said is there when this returns."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(30) == 0
        for thread in self._threads:
            thread.join(30)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()

    def skipped(self) -> int:
        """The records that it said were skipped."""
        found = (re.search(r": ([\d,]+) records? of 'deaf' skipped", note) for note in self.notes)
        return sum(int(one[1].replace(",", "")) for one in found if one)

    def shown(self) -> int:
        """The records that it showed: ours have one number each, the daemon's own several."""
        ours = sum(point["tag"] == "a" for point in self.points)
        own = {(p["tag"].split("/")[0], p["wall_time"]) for p in self.points if p["tag"] != "a"}
        return ours + len(own)


@pytest.fixture
def listen(sandbox: Sandbox) -> Iterator[Callable[[], Listener]]:
    """Starts `tail --json` in the sandbox."""
    started: list[Listener] = []

    def start() -> Listener:
        started.append(Listener(sandbox))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait(30)
        for stream in (one.process.stdout, one.process.stderr):
            if stream and not stream.closed:
                stream.close()


def test_it_skips_says_how_much_and_delays_nobody(
    sandbox: Sandbox, connect: Connect, listen: Callable[[], Listener]
) -> None:
    sandbox.serve()
    deaf, hearing = listen(), listen()
    hearing.read()
    clients = [connect(RUN, outbox_bytes=8 << 20) for _ in range(CLIENTS)]
    await_heard(clients[0], hearing, step=-1)
    await_listening(clients[0], deaf)
    emitted, worst_ms = emit_from_all(clients, sandbox)
    # Nobody waits for it: not the clients, nor the sinks, nor the one who reads.
    assert all(one.flush(30) for one in clients)
    sandbox.drain(60)
    await_heard(clients[0], hearing, step=-2)

    deaf.read()
    await_heard(clients[0], deaf, step=-3)
    assert all(one.finish(30) for one in clients)
    assert sum(one.stats().dropped for one in clients) == 0
    sandbox.drain(60)
    # The feed says once a second how far it is, so that the end of a run can be missed, too.
    uptime_s = sandbox.status()["daemon"]["uptime_s"]
    wait_until(lambda: sandbox.status()["daemon"]["uptime_s"] > uptime_s + 1.5, 30, "status")
    for listener in (deaf, hearing):
        listener.stop()

    total = journalled(sandbox)
    print(
        f"{total:,} records; a tail that did not read showed {deaf.shown():,} and told of "
        f"{deaf.skipped():,} skipped, one that did {hearing.shown():,} and {hearing.skipped():,}; "
        f"{PER_ROUND} emits took {worst_ms:.2f} ms at worst"
    )
    assert deaf.skipped() > 0, "this test did not make it skip"
    assert deaf.shown() + deaf.skipped() == total
    assert hearing.shown() + hearing.skipped() == total
    assert "sidestep export deaf" in "".join(deaf.notes)
    steps = Counter(p["step"] for p in deaf.points if p["tag"] == "a" and p["step"] >= 0)
    assert set(steps.values()) == {1}
    found = read_scalars(sandbox.event_files(RUN))
    ours = Counter({point: many for point, many in found.items() if point[1] >= 0})
    assert_exactly(ours, points(("a", step, step / 3) for step in range(emitted)))


def await_heard(made: client.Client, listener: Listener, step: int) -> None:
    """Emit until `listener` has shown it: what was published before, it has shown or skipped."""

    def heard() -> bool:
        made.emit({"a": 0.0}, step=step)
        return any(point["step"] == step for point in listener.points)

    wait_until(heard, 60, lambda: f"nothing heard: {listener.notes}", 0.1)


def await_listening(made: client.Client, listener: Listener) -> None:
    """Emit until there is something to read, and do not read it."""
    said_there = listener.process.stdout
    assert said_there

    def said() -> bool:
        made.emit({"a": 0.0}, step=-1)
        return bool(select.select([said_there], [], [], 0)[0])

    wait_until(said, 60, lambda: f"nothing said: {listener.notes}", 0.1)


def emit_from_all(clients: list[client.Client], sandbox: Sandbox) -> tuple[int, float]:
    """Many small batches, since each client sends what it has every 10 ms; the number of emits.

    They are more than wait for a subscriber in all: 200 messages there, and some 600 KiB before.
    """
    step, worst_s = 0, 0.0
    while sandbox.status()["daemon"]["journal_rows"] < ROWS:
        for _ in range(10):
            for one in clients:
                began = time.perf_counter()
                for _ in range(PER_ROUND):
                    one.emit({"a": step / 3}, step=step)
                    step += 1
                worst_s = max(worst_s, time.perf_counter() - began)
            time.sleep(0.01)
    return step, worst_s * 1e3


def journalled(sandbox: Sandbox) -> int:
    """The records that the journal had of the run."""
    reader = JournalReader(str(sandbox.state / "journal.sqlite"))
    try:
        return sum(reader.total(run_id) for run_id in reader.runs())
    finally:
        reader.close()


def test_a_feed_that_falls_behind_is_counted_too(tmp_path: Path) -> None:
    """More rows than the feed publishes late: what it leaves out, the follower knows."""
    path = str(tmp_path / "journal.sqlite")
    journal = Journal(path)
    journal.begin()
    run_id = journal.put_run(RunSpec(RUN, "/logs"))
    row = ClientRow(0, b"u" * 16, run_id, 0, 0, 1, "live", 0, 0, 0, 0, None)
    client_id = journal.put_client(row)
    journal.put_tag_set(client_id, 0, ("a",))
    journal.commit()
    follower = Follower(RUN)
    follower.request()
    follower.on_history({"daemon_id": 7, "row": 0, "points": [], "runs": []})
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    endpoint = f"ipc://{tmp_path}/feed"
    feed = Feed(
        partial(feed_door, endpoint, 8, print),
        path,
        7,
        lambda: {"daemon": {"daemon_id": 7}},
        lambda: {run_id: RUN},
    )
    feed.start()
    listener = context.socket(zmq.SUB)
    listener.setsockopt(zmq.RCVHWM, 0)
    for topic in follower.topics:
        listener.setsockopt(zmq.SUBSCRIBE, topic)
    listener.connect(endpoint)
    shown = 0
    try:

        def take() -> None:
            nonlocal shown
            assert listener.poll(20_000)
            topic, payload = listener.recv_multipart()
            message = msgpack.unpackb(payload)
            if topic == STATUS_TOPIC:
                follower.on_status(message["status"], message["totals"])
            else:
                shown += sum(len(block.steps) for block in follower.on_feed(message))

        take()  # a status: the subscription has reached the feed
        follower.request()
        follower.on_history({"daemon_id": 7, "row": 0, "points": [], "runs": []})
        journal.begin()
        for step in range(5000):
            data = b"".join(encode_scalars(Scalars(0, step, 0, (0.5,))) for _ in range(3))
            journal.append(run_id, client_id, 3, data)
        journal.commit()
        feed.rows(journal.last_row)
        deadline = time.monotonic() + 30
        while shown + follower.missed < 15_000 and time.monotonic() < deadline:
            take()
        print(f"15,000 records at once: {shown:,} published, {follower.missed:,} known as missed")
        assert shown + follower.missed == 15_000
        assert follower.missed >= 9000  # what is beyond 2,000 rows
    finally:
        feed.stop()
        feed.join(10)
        listener.close(linger=0)
        context.destroy(linger=0)
        journal.close()

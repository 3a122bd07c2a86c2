"""The feed: what goes wrong behind it interrupts it, and does not end it."""

from __future__ import annotations

import sys
import threading
from functools import partial
from pathlib import Path

import zmq

from sidestep.proto import RunSpec
from sidestep.proto.records import Scalars, encode_scalars
from sidestep.sidecar.ingest.roster import RunEntry, Snapshot
from sidestep.sidecar.journal.writer import ClientRow, Journal
from sidestep.sidecar.live.feed import STATUS_TOPIC, Feed
from sidestep.sidecar.peers.observers import feed_door
from sidestep.sidecar.supervision.supervisor import Supervisor
from tests.support.waiting import wait_until


def test_a_journal_that_cannot_be_read_interrupts_the_feed(tmp_path: Path) -> None:
    path, endpoint = str(tmp_path / "journal.sqlite"), f"ipc://{tmp_path}/feed"
    said: list[str] = []
    door = partial(feed_door, endpoint, 8, said.append)
    feed = Feed(door, path, 7, dict, lambda: {1: "r"}, said.append)
    feed.start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    listener = context.socket(zmq.SUB)
    listener.setsockopt(zmq.SUBSCRIBE, b"")
    listener.connect(endpoint)
    try:
        wait_until(lambda: said, 10, "a word in the log")
        assert not listener.poll(300), "there is no journal"
        assert feed.is_alive()
        assert len(said) == 1, said
        journal = Journal(path)
        journal.begin()
        run_id = journal.put_run(RunSpec("r", "/logs"))
        client = ClientRow(0, b"u" * 16, run_id, 0, 0, 1, "live", 0, 0, 0, 0, None)
        client_id = journal.put_client(client)
        journal.put_tag_set(client_id, 0, ("a",))
        journal.append(run_id, client_id, 1, encode_scalars(Scalars(0, 1, 0, (0.5,))))
        journal.commit()
        feed.rows(journal.last_row)
        topics: set[bytes] = set()
        while topics != {STATUS_TOPIC, b"r\0"}:
            assert listener.poll(10_000), topics
            topics.add(listener.recv_multipart()[0])
        journal.close()
    finally:
        feed.stop()
        feed.join(10)
        context.destroy(linger=0)
    assert not feed.is_alive()


def test_sinks_can_be_listed_while_others_come(tmp_path: Path) -> None:
    """The feed asks for the status in its own thread."""
    supervisor = Supervisor("", 1, str(tmp_path), 0o077, lambda _: None, lambda _: (0, 0))
    over = threading.Event()
    failed: list[Exception] = []

    def look() -> None:
        try:
            while not over.is_set():
                supervisor.sinks(7)
                supervisor.sinks()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=look)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        runs: dict[int, RunEntry] = {}
        for run in range(150):
            runs[run] = RunEntry(run, RunSpec(str(run), "/logs"))
            supervisor.tick(Snapshot(runs=runs), set())
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(before)
    assert not failed, failed
    assert len(supervisor.sinks()) == 300
    assert [sink.run_id for sink in supervisor.sinks(7)] == [7, 7]

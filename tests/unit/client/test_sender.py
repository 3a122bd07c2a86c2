"""The sender against a daemon that answers, restarts, refuses, grants nothing, or is not there."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

from sidestep import client as sidestep
from sidestep.client import emitter, sender as sender_module
from sidestep.client.wake import WakePipe
from sidestep.proto import Alarm, Batch, Bye, Hello, Message, Nack, Pong, Reject, Tags
from sidestep.proto.paths import RuntimePaths
from sidestep.proto.session import ClientState
from tests.unit.client.conftest import MakeClient
from tests.unit.client.fake_daemon import FakeDaemon, Known, records_in

LONG_S = 20.0
"""No test waits for so long unless something is wrong."""


def wait_for(condition: Callable[[], bool]) -> None:
    """Until `condition`, which another thread brings about, holds."""
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)


def outboxes(client: sidestep.Client) -> list[Path]:
    return list(Path(client._memory.path).parent.iterdir())


def test_everything_arrives_once_and_in_order(connect: MakeClient, places: RuntimePaths) -> None:
    client = connect(outbox_bytes=4 << 20)
    for step in range(3000):
        client.emit({"a": float(step), f"b/{step % 3}": 0.5}, step=step)
        if step % 500 == 0:
            client.emit({"t": sidestep.Text(str(step) * 20_000)}, step=step)
    with FakeDaemon(places) as daemon:
        assert client.flush(LONG_S)
        stats = client.stats()
        assert (stats.emitted, stats.acked, stats.held, stats.dropped) == (3006, 3006, 0, 0)
        assert (stats.acked_bytes, stats.held_bytes) == (stats.emitted_bytes, 0)
        client.emit({"late": 1.0}, step=9)
        assert client.finish(LONG_S)
    expected = [(("a", f"b/{step % 3}"), step, (float(step), 0.5)) for step in range(3000)] + [
        (("late",), 9, (1.0,))
    ]
    assert daemon.rows() == expected
    (known,) = daemon.clients.values()
    assert known.farewell
    assert daemon.undefined == 0
    assert not os.path.exists(client._memory.path)
    assert client.stats().acked == 3007
    assert client.finish() is True
    assert client.flush() is True


def test_what_it_says_of_itself(connect: MakeClient, places: RuntimePaths) -> None:
    with FakeDaemon(places) as daemon:
        client = connect(config={"lr": 0.1}, tags=["x"], rank=0, world_size=2, wandb=True)
        client.emit({"a": 1.0, "bad": "x"}, step=1)
        assert client.finish(LONG_S)
    (known,) = daemon.clients.values()
    hello = known.hello
    assert (hello.run.name, hello.run.config, hello.run.tags) == ("test", {"lr": 0.1}, ("x",))
    assert (hello.rank, hello.world_size, hello.pid) == (0, 2, os.getpid())
    assert hello.outbox.endswith(".outbox")
    assert (known.session.books.emitted, known.session.books.rejected) == (1, 1)


def test_the_daemon_comes_late_and_restarts(connect: MakeClient, places: RuntimePaths) -> None:
    client = connect()
    journal: dict[bytes, Known] = {}
    for round_number in range(3):
        for step in range(200):
            client.emit({"a": float(1000 * round_number + step)}, step=step)
        with FakeDaemon(places, journal=journal):
            assert client.flush(LONG_S)
    with FakeDaemon(places, journal=journal) as daemon:
        assert client.finish(LONG_S)
    values = [values[0] for _, _, values in daemon.rows()]
    assert values == [1000.0 * n + step for n in range(3) for step in range(200)]


def test_a_daemon_that_forgot_everything(connect: MakeClient, places: RuntimePaths) -> None:
    client = connect()
    client.emit({"a": 1.0}, step=1)
    with FakeDaemon(places):
        assert client.flush(LONG_S)
    client.emit({"a": 2.0}, step=2)
    with FakeDaemon(places) as daemon:
        assert client.finish(LONG_S)
    # What another one had acknowledged is not sent again; the tags are.
    assert daemon.rows() == [(("a",), 2, (2.0,))]


def test_what_was_dropped_is_announced(connect: MakeClient, places: RuntimePaths) -> None:
    client = connect()
    for step in range(6000):
        client.emit({"a": float(step), "b": 0.0, "c": 0.0}, step=step)
        if step % 1000 == 0:
            client.emit({"t": sidestep.Text("x" * 20_000)}, step=step)
    dropped = client.stats().dropped
    numbered = dropped - client._outbox._lost  # the others were dropped before they had a number
    assert numbered > 1000
    with FakeDaemon(places) as daemon:
        assert client.flush(LONG_S)
        assert client.finish(LONG_S)
    (known,) = daemon.clients.values()
    assert sum(last - first + 1 for first, last, _ in known.gaps) == numbered
    assert known.session.books.dropped == dropped
    assert {reason for _, _, reason in known.gaps} == {"outbox full"}
    stats = client.stats()
    assert (stats.acked, stats.dropped, stats.held) == (6006 - dropped, dropped, 0)
    assert len(known.records) == stats.acked
    assert daemon.rows()[-1][1] == 5999


def test_without_credit_nothing_is_sent(connect: MakeClient, places: RuntimePaths) -> None:
    client = connect()
    client.emit({"a": 1.0}, step=1)
    with FakeDaemon(places, credit=0) as daemon:
        wait_for(lambda: client._sender.state is ClientState.READY)
        assert client.flush(0.2) is False
        assert client.stats().held == 1
        assert not daemon.rows()
        daemon.credit = 1  # comes with the answer to a PING; one record may always go
        assert client.flush(LONG_S)


def test_a_record_larger_than_the_credit_goes_alone(
    connect: MakeClient, places: RuntimePaths
) -> None:
    client = connect(outbox_bytes=4 << 20)
    with FakeDaemon(places, credit=1000) as daemon:
        for step in range(5):
            client.emit({"t": sidestep.Text("x" * 100_000)}, step=step)
            client.emit({"a": 1.0}, step=step)
        assert client.flush(LONG_S)
    (known,) = daemon.clients.values()
    assert len(known.records) == 10


def test_messages_that_are_lost_are_sent_again(connect: MakeClient, places: RuntimePaths) -> None:
    lost: list[Message] = []

    def lose(message: Message) -> list[Message] | None:
        if records_in(message) and len(lost) < 1:
            lost.append(message)
            return []
        return None

    client = connect()
    for step in range(100):
        client.emit({"a": float(step)}, step=step)
    with FakeDaemon(places, answer=lose) as daemon:
        assert client.flush(LONG_S)
    assert [step for _, step, _ in daemon.rows()] == list(range(100))
    assert lost


def test_refused_records_are_dropped_alone(
    connect: MakeClient, places: RuntimePaths, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect()
    client.emit({"a": 1.0}, step=1)
    refused: list[int] = []

    def refuse(message: Message) -> list[Message] | None:
        if isinstance(message, Batch) and message.first_seq == 2 and not refused:
            refused.append(message.last_seq)
            return [Nack("refused", "too odd", message.first_seq, message.last_seq)]
        return None

    with FakeDaemon(places, answer=refuse) as daemon:
        assert client.flush(LONG_S)
        client.emit({"a": 2.0}, step=2)
        assert client.flush(LONG_S)
        client.emit({"a": 3.0}, step=3)
        assert client.finish(LONG_S)
    assert [step for _, step, _ in daemon.rows()] == [1, 3]
    (known,) = daemon.clients.values()
    assert known.gaps == [(2, 2, "too odd")]
    assert client.stats().dropped == 1
    assert "the daemon refused records 2 to 2: too odd" in caplog.text


def test_a_daemon_that_rejects_this_client(
    connect: MakeClient, places: RuntimePaths, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect()

    def reject(message: Message) -> list[Message] | None:
        return [Reject("version", "too old")] if isinstance(message, Hello) else None

    with FakeDaemon(places, answer=reject):
        wait_for(lambda: client._sender.state is ClientState.REJECTED)
        client.emit({"a": 1.0}, step=1)
        assert client.flush(600) is False  # at once
        assert client.finish(600) is False
    assert "the daemon refuses this client (version): too old" in caplog.text
    assert client.stats().held == 1
    assert os.path.exists(client._memory.path)


def test_a_bye_that_is_not_answered(connect: MakeClient, places: RuntimePaths) -> None:
    client = connect()
    client.emit({"a": 1.0}, step=1)
    with FakeDaemon(places, answer=lambda m: [] if isinstance(m, Bye) else None) as daemon:
        assert client.flush(LONG_S)
        assert client.finish(0.1) is True  # all is durable, said goodbye or not
    assert len(daemon.rows()) == 1
    assert os.path.exists(client._memory.path)  # a daemon finds that nothing is left in it


def test_alarms_reach_the_callbacks(
    connect: MakeClient, places: RuntimePaths, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Alarm] = []

    def fail(alarm: Alarm) -> None:
        raise SystemExit(str(alarm))  # as sys.exit() does: it must not end the thread

    alarm = Alarm("train/context", "collapsed", 5, "rank 1")
    with FakeDaemon(places) as daemon:
        client = connect()
        client.on_alarm(fail)
        client.on_alarm(heard.append)
        sidestep.on_alarm(lambda alarm: client.emit({"stop": 1.0}, step=alarm.step))
        assert client.flush(LONG_S)
        wait_for(lambda: client._sender.state is ClientState.READY)
        daemon.say(alarm)
        wait_for(lambda: client.stats().emitted == 1)
        assert client.finish(LONG_S)
    assert heard == [alarm]
    assert "an on_alarm callback failed" in caplog.text


def test_a_callback_may_finish(connect: MakeClient, places: RuntimePaths) -> None:
    answers: list[bool] = []
    with FakeDaemon(places, credit=0) as daemon:
        client = connect()
        client.on_alarm(lambda _: answers.append(client.finish(0.2)))
        wait_for(lambda: client._sender.state is ClientState.READY)
        client.emit({"a": 1.0}, step=1)
        daemon.say(Alarm("t", "collapsed", 5, ""))
        wait_for(lambda: bool(answers))
        client._sender.join(LONG_S)
        assert not client._sender.is_alive()
    assert answers == [False]
    assert client.stats().held == 1


# --- what goes wrong inside ----------------------------------------------------------------------


def test_tags_are_defined_before_records_that_came_meanwhile(
    connect: MakeClient, places: RuntimePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    take = client._outbox.take
    count = 0

    def emit_and_take(seq: int, may_send: Callable[[int], bool]) -> Any:
        # Another thread emits between any two steps of the sender.
        nonlocal count
        if count < 50:
            count += 1
            client.emit({f"new/{count}": 1.0}, step=count)
        return take(seq, may_send)

    monkeypatch.setattr(client._outbox, "take", emit_and_take)
    with FakeDaemon(places) as daemon:
        wait_for(lambda: count == 50)
        assert client.flush(LONG_S)
    assert daemon.undefined == 0
    assert len(daemon.rows()) == 50


def test_many_tag_sets_are_defined_in_several_messages(
    connect: MakeClient, places: RuntimePaths
) -> None:
    client = connect(outbox_bytes=64 << 20)
    sets = 2500
    for n in range(sets):
        client.emit({f"tag/{n}": 1.0}, step=n)
    wide = {f"{i:0100}": 1.0 for i in range(2400)}
    client.emit(wide, step=sets)
    seen: list[int] = []

    def watch(message: Message) -> None:
        if isinstance(message, Tags):
            seen.append(len(message.tag_sets))

    with FakeDaemon(places, answer=watch) as daemon:
        assert client.flush(LONG_S)
    assert seen == [1000, 1000, 500, 1]
    assert daemon.undefined == 0
    assert daemon.rows()[-1] == (tuple(wide), sets, (1.0,) * 2400)


@pytest.mark.parametrize("where", ["housekeeping", "books", "take"])
def test_an_error_of_our_own_does_not_end_the_delivery(
    connect: MakeClient,
    places: RuntimePaths,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    client = connect()
    client.emit({"a": 1.0}, step=1)
    failures = 0

    def fail(*_: object) -> Any:
        nonlocal failures
        failures += 1
        if failures <= 2:
            raise RuntimeError("by accident")
        return original(*_)

    holder, name = {
        "housekeeping": (client._sender, "_housekeeping"),
        "books": (client._sender, "_books"),
        "take": (client._outbox, "take"),
    }[where]
    original = getattr(holder, name)
    monkeypatch.setattr(holder, name, fail)
    with FakeDaemon(places) as daemon:
        assert client.flush(LONG_S)
    assert failures > 2
    assert len(daemon.rows()) == 1
    assert caplog.text.count("the sender starts over: RuntimeError: by accident") <= 2


def test_what_never_works_is_not_said_for_ever(
    connect: MakeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sender_module, "IDLE_S", 0.0001)
    monkeypatch.setattr(sender_module, "_LAST_RETRY_S", 0.002)
    attempts = 0

    def fail(*_: object) -> Any:
        nonlocal attempts
        attempts += 1
        raise zmq.ZMQError(24, "too many open files")

    monkeypatch.setattr(sender_module, "Link", fail)
    client = connect()
    client.emit({"a": 1.0}, step=1)
    wait_for(lambda: attempts > 40)
    assert client.finish(0) is False
    assert len([r for r in caplog.records if "starts over" in r.getMessage()]) < 10


def test_it_is_said_once_that_there_is_no_daemon(
    connect: MakeClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sender_module, "_SILENCE_S", 0.0)
    rounds = 0

    def count() -> None:
        nonlocal rounds
        rounds += 1

    client = connect()
    monkeypatch.setattr(client._sender, "_housekeeping", count)
    wait_for(lambda: rounds > 5)
    client.finish(0)
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "sidestep start" in warnings[0].getMessage()


def test_it_does_not_spin_while_it_waits(
    connect: MakeClient, places: RuntimePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeDaemon(places):
        client = connect()
        client.emit({"a": 1.0}, step=1)
        assert client.flush(LONG_S)
        rounds = 0
        done = threading.Event()

        def count() -> None:
            nonlocal rounds
            rounds += 1
            if rounds == 20:
                done.set()

        monkeypatch.setattr(client._sender, "_housekeeping", count)
        cpu = time.thread_time()
        began = time.monotonic()
        assert done.wait(LONG_S)
        # Twenty rounds, most of them an interval apart: it would be a millisecond if it span.
        assert time.monotonic() - began > 0.08
        assert time.thread_time() - cpu < 0.05


def test_a_daemon_of_many_clients_sets_the_pace_and_nobody_is_kept_waiting(
    connect: MakeClient, places: RuntimePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidestep.proto.session.client.MAX_PACE_S", 0.5)
    sent: list[Message] = []

    def note(message: Message) -> None:
        if isinstance(message, Batch):
            sent.append(message)

    with FakeDaemon(places, answer=note) as daemon:
        client = connect()
        wait_for(lambda: client._sender.state is ClientState.READY)
        daemon.say(Pong(60_000))
        wait_for(lambda: client._sender._session.pace_s == 0.5)
        began, before, step = time.monotonic(), len(sent), 0
        while time.monotonic() - began < 0.5:
            client.emit({"a": 1.0}, step=step)
            step += 1
            threading.Event().wait(0.001)
        # One of them may have been due already, at the old pace.
        assert len(sent) - before <= 2 + (time.monotonic() - began) / 0.5
        assert client.flush(LONG_S)
        assert len(daemon.rows()) == step


def test_a_full_queue_is_tried_again(
    connect: MakeClient, places: RuntimePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(outbox_bytes=4 << 20)
    for step in range(300):
        client.emit({f"a/{step % 5}": float(step)}, step=step)
    client.emit({"t": sidestep.Text("x" * 200_000)}, step=1)
    send = client._sender._send
    tries = 0

    def often_full(socket: Any, message: Message) -> bool:
        nonlocal tries
        tries += 1
        return tries % 7 != 0 and send(socket, message)

    with FakeDaemon(places) as daemon:
        wait_for(lambda: client._sender.state is ClientState.READY)
        monkeypatch.setattr(client._sender, "_send", often_full)
        client.emit({"last": 1.0}, step=300)
        for _ in range(20):
            client.emit({"t": sidestep.Text("x" * 9_000)}, step=1)
        assert client.flush(LONG_S)
    assert [step for _, step, _ in daemon.rows()] == list(range(301))
    (known,) = daemon.clients.values()
    assert len(known.records) == 322
    assert daemon.undefined == 0


def test_what_is_not_understood_is_passed_over(
    connect: MakeClient, places: RuntimePaths, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect()
    with FakeDaemon(places) as daemon:
        wait_for(lambda: client._sender.state is ClientState.READY)
        for frame in (b"", b"junk", b"SDS\x63x", b"SDS\x01\x92\xa3new\x80"):
            daemon.say(frame)
        client.emit({"a": 1.0}, step=1)
        assert client.flush(LONG_S)
    assert len(daemon.rows()) == 1
    assert client._sender.strange_frames == 4
    assert caplog.text.count("is not understood") == 1, "counted, and said once"


def test_an_emit_that_comes_after_the_seal_is_counted(connect: MakeClient) -> None:
    client = connect()
    client.emit({"a": 1.0}, step=1)
    client._outbox.seal()  # as finish() does, between two looks of this thread
    client.emit({"a": 1.0, "b": 2.0}, step=2)
    client.emit({"a": 1.0}, step=3)
    client.emit({"text": sidestep.Text("x")}, step=4)
    stats = client.stats()
    assert (stats.emitted, stats.rejected) == (1, 4)


# --- the pipe ------------------------------------------------------------------------------------


def test_waking_after_the_end_writes_into_nobodys_file(tmp_path: Path) -> None:
    pipe = WakePipe()
    for _ in range(100_000):
        pipe.wake()  # a full pipe is no error
    pipe.drain()
    pipe.close()
    pipe.close()
    with open(tmp_path / "checkpoint", "wb") as first, open(tmp_path / "other", "wb") as second:
        assert {first.fileno(), second.fileno()} & {pipe.read_fd, pipe._write_fd}
        pipe.wake()
        first.flush()
        second.flush()
    assert (tmp_path / "checkpoint").read_bytes() == (tmp_path / "other").read_bytes() == b""


def test_the_descriptors_of_a_finished_client_are_given_back(
    connect: MakeClient, places: RuntimePaths
) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with FakeDaemon(places):
        connect().finish(LONG_S)
        before = descriptors()
        maps = Path("/proc/self/maps").read_text().count(".outbox")
        for _ in range(5):
            client = connect()
            client.emit({"a": 1.0}, step=1)
            assert client.finish(LONG_S)
        assert descriptors() == before
        assert Path("/proc/self/maps").read_text().count(".outbox") == maps
        assert client not in emitter._living

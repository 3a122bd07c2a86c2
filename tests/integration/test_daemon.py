"""`serve`, `start` and `stop`: one daemon in a directory, from its ready line to its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from tests.support.fixtures import Connect, Train
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)


def test_serve_prints_one_line_when_it_is_ready(sandbox: Sandbox) -> None:
    with sandbox.popen("serve") as daemon:
        assert daemon.stdout
        line = daemon.stdout.readline()
        assert f"ready: pid {daemon.pid}" in line
        assert sandbox.paths.data_endpoint in line
        # Ready means ready: no second try.
        assert sandbox.control.request("hello", 2.0)["pid"] == daemon.pid
        daemon.send_signal(signal.SIGTERM)
        said, complained = daemon.communicate(timeout=30)
        assert daemon.returncode == 0
    assert complained == ""
    assert [text[20:] for text in said.splitlines()] == [
        "stopping: what is journalled is written first",
        "stopped",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_writes_what_is_journalled(
    sandbox: Sandbox, connect: Connect, number: signal.Signals
) -> None:
    daemon = sandbox.serve()
    made = connect("signalled")
    for step in range(5000):
        made.emit({"a": step / 3}, step=step)
    assert made.flush(30)
    daemon.process.send_signal(number)
    assert daemon.process.wait(60) == 0
    expected = points(("a", step, step / 3) for step in range(5000))
    assert_exactly(read_scalars(sandbox.event_files("signalled")), expected)
    assert not sandbox.processes()


def test_second_signal_does_not_wait(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.logs.write_text("a file where the directory should be")
    daemon = sandbox.serve()
    made = connect("stuck")
    made.emit({"a": 1.0}, step=0)
    assert made.flush(30)
    sandbox.await_sink("stuck", "degraded")
    daemon.process.send_signal(signal.SIGINT)
    wait_until(lambda: "stopping" in daemon.said(), 10, daemon.said)
    assert daemon.process.poll() is None
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.process.wait(15) == 0
    sandbox.logs.unlink()
    sandbox.serve()
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("stuck")), points([("a", 0, 1.0)]))


def test_second_daemon_names_the_holder(sandbox: Sandbox) -> None:
    pid = sandbox.serve().pid
    done = sandbox.cli("serve", timeout_s=30)
    assert done.returncode == 1
    assert f"pid {pid}" in done.stderr
    assert str(sandbox.runtime) in done.stderr
    assert "Traceback" not in done.stderr
    assert sandbox.daemon_pid() == pid


def test_daemon_that_is_starting_is_not_called_by_a_dead_ones_name(sandbox: Sandbox) -> None:
    """The lock's text is the dead daemon's until the new one is ready: nobody may believe it."""
    dead = sandbox.serve()
    dead.kill()
    starting = sandbox.serve_unready()

    def holder() -> int | None:
        who = sandbox.control.daemon()
        return None if who is None else who.pid

    seen: set[int] = set()
    while "sidestep is ready" not in starting.said():
        assert starting.process.poll() is None, starting.said()
        if (pid := holder()) is not None:
            seen.add(pid)
    assert seen <= {0, starting.pid}, f"{dead.pid} is dead"


def test_start_returns_when_the_daemon_is_ready(sandbox: Sandbox) -> None:
    done = sandbox.cli("start")
    assert done.returncode == 0, done.stderr
    pid = sandbox.control.request("hello", 2.0)["pid"]
    assert f"pid {pid}" in done.stdout
    again = sandbox.cli("start")
    assert again.returncode == 0
    assert "already" in again.stdout
    assert f"pid {pid}" in again.stdout
    stopped = sandbox.cli("stop")
    assert stopped.returncode == 0
    assert f"pid {pid}" in stopped.stdout
    assert sandbox.control.daemon() is None
    wait_until(lambda: not sandbox.processes(), 5, sandbox.processes)
    assert sandbox.cli("stop").returncode == 0


def test_many_starts_at_once_start_one(sandbox: Sandbox) -> None:
    starts = [sandbox.popen("start") for _ in range(5)]
    said = [start.communicate(timeout=60) for start in starts]
    assert [start.returncode for start in starts] == [0] * 5, said
    assert len(sandbox.daemons()) == 1
    assert sum("is ready" in out for out, _ in said) == 1


def test_stop_leaves_complete_files(sandbox: Sandbox, train: Train) -> None:
    sandbox.serve()
    run = train(
        run="stopped", emits=3000, tags=10, interval_s=0.0005, limit=1500, finish_timeout_s=1.0
    )
    run.await_begun(1000)
    done = sandbox.cli("stop")
    assert done.returncode == 0, done.stderr
    wait_until(
        lambda: {p.pid for p in sandbox.processes()} <= {run.process.pid}, 5, sandbox.processes
    )
    found = read_scalars(sandbox.event_files("stopped"))  # asserts that they end with a record
    assert 0 < found.total() <= 15_000
    run.record["limit"] = 0
    # The client that runs on does not start another one, since a user stopped this one.
    assert not run.finished()["finish"]
    assert sandbox.control.daemon() is None
    sandbox.serve()
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("stopped")), run.emitted(3000))


def test_stop_now_does_not_wait_for_a_broken_sink(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.logs.write_text("a file where the directory should be")
    sandbox.serve()
    made = connect("now")
    made.emit({"a": 2.5}, step=1)
    assert made.flush(30)
    sandbox.await_sink("now", "degraded")
    done = sandbox.cli("stop", "--now", timeout_s=20)
    assert done.returncode == 0, done.stderr
    sandbox.logs.unlink()
    sandbox.serve()
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("now")), points([("a", 1, 2.5)]))


def test_finish_is_true_when_all_was_durable_before(sandbox: Sandbox, connect: Connect) -> None:
    """Nothing is left to deliver: that nobody is there for the goodbye changes nothing."""
    daemon = sandbox.serve()
    made = connect("durable")
    made.emit({"a": 2.5}, step=1)
    assert made.flush(30)
    daemon.kill()
    assert made.finish(2.0)
    assert (made.stats().acked, made.stats().held) == (1, 0)
    # Not lost either: it said all that it had to say.
    sandbox.serve()
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("durable")), points([("a", 1, 2.5)]))


def test_stale_files_are_replaced(sandbox: Sandbox) -> None:
    sandbox.runtime.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(sandbox.runtime / "data.sock"))
    (sandbox.runtime / "ctl.sock").write_text("no socket")
    (sandbox.runtime / "daemon.lock").write_text(json.dumps({"pid": 1}))
    sandbox.serve()
    assert sandbox.status()["daemon"]["state"] == "running"


def test_directories_are_private(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.runtime.mkdir()
    os.chmod(sandbox.runtime, 0o755)
    sandbox.serve()
    made = connect("private")
    made.emit({"a": 1.0}, step=0)
    assert made.finish(30)
    assert stat.S_IMODE(sandbox.runtime.stat().st_mode) == 0o700
    assert stat.S_IMODE(sandbox.state.stat().st_mode) & 0o077 == 0
    for file in [*sandbox.state.rglob("*"), *sandbox.runtime.rglob("*")]:
        assert file.is_dir() or stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_unusable_state_directory_is_a_sentence(sandbox: Sandbox) -> None:
    sandbox.state.write_text("a file")
    done = sandbox.cli("start")
    assert done.returncode == 1
    assert str(sandbox.state) in done.stderr
    assert "Traceback" not in done.stderr
    assert sandbox.control.daemon() is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sidecar: {credit: 4}", "did you mean 'credit_mb'"),
        ("sidecar: {credit_mb: lots}", "credit_mb"),
        ("sidecars: {}", "did you mean 'sidecar'"),
        ("sidecar: [1", "cannot read"),
        ("sidecar: {endpoint: 'tcp://0.0.0.0:5000'}", "loopback"),
    ],
)
def test_bad_configuration_is_a_sentence(sandbox: Sandbox, text: str, words: str) -> None:
    file = sandbox.work / "config.yaml"
    file.write_text(text)
    done = sandbox.cli("serve", "--config", str(file), timeout_s=20)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_log_of_a_background_daemon(sandbox: Sandbox) -> None:
    assert sandbox.cli("start").returncode == 0
    assert "sidestep is ready" in Path(sandbox.paths.log).read_text()

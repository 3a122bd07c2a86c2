"""A second daemon, stale sockets and locks, long paths: one daemon goes on, others say why."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from sidestep.proto import SidestepError
from sidestep.proto.paths import MAX_SOCKET_PATH_BYTES, RuntimePaths
from tests.support.fixtures import Connect, Train
from tests.support.journal_file import assert_sound
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

LONGEST_NAME = "feed.sock"
"""The socket with the longest name (with data.sock)."""


def test_others_are_refused_in_the_middle_of_a_run(sandbox: Sandbox, train: Train) -> None:
    """Same directory, same journal, same further socket: each time the holder is named, and the run
    that it serves does not notice.
    """
    endpoint = f"ipc://{sandbox.root}/further"
    first = sandbox.serve(SIDESTEP_ENDPOINT=endpoint)
    run = train(run="held", emits=4000, tags=5, interval_s=0.001, connect={"autostart": False})
    run.await_begun(100)
    elsewhere = str(sandbox.root / "e")
    refused: dict[str, dict[str, str]] = {
        "runs already": {},
        "the state directory": {"SIDESTEP_RUNTIME_DIR": str(sandbox.root / "o1")},
        "listens at the endpoint": {
            "SIDESTEP_RUNTIME_DIR": str(sandbox.root / "o2"),
            "SIDESTEP_STATE_DIR": elsewhere,
            "SIDESTEP_ENDPOINT": endpoint,
        },
    }
    seconds = {why: sandbox.popen("serve", **env) for why, env in refused.items()}
    for why, second in seconds.items():
        said, complained = second.communicate(timeout=60)
        assert (second.returncode, said) == (1, ""), (why, complained)
        assert why in complained
        assert "Traceback" not in complained
        assert why == "listens at the endpoint" or f"pid {first.pid}" in complained
    # Of another runtime directory, on the same journal: it says where the other one is.
    started = sandbox.cli("start", SIDESTEP_RUNTIME_DIR=str(sandbox.root / "o3"))
    assert started.returncode == 1
    assert str(sandbox.runtime) in started.stderr

    assert sandbox.daemon_pid() == first.pid
    assert run.finished()["finish"]
    sandbox.drain()
    assert_exactly(read_scalars(sandbox.event_files("held")), run.emitted(4000))
    assert_sound(sandbox)


def test_what_a_killed_daemon_leaves_is_one_ones_and_no_more(
    sandbox: Sandbox, connect: Connect
) -> None:
    """Its lock's text, its sockets: several start at once over them, and one of them serves."""
    dead = sandbox.serve()
    made = connect("stale")
    made.emit({"a": 1.0}, step=0)
    assert made.flush(30)
    dead.kill()
    left = sorted(path.name for path in sandbox.runtime.iterdir())
    assert {"ctl.sock", "data.sock", "feed.sock", "daemon.lock"} <= set(left)
    assert json.loads(Path(sandbox.paths.lock).read_text())["pid"] == dead.pid
    crowd = [sandbox.serve_unready() for _ in range(4)]
    pid = sandbox.await_daemon()
    for one in crowd:
        if one.pid != pid:
            assert one.process.wait(60) == 1, one.said()
            assert f"pid {pid}" in one.said() or "pid unknown" in one.said(), one.said()
            assert f"pid {dead.pid})" not in one.said()
    # The sockets are the new one's: it answers, and the client finds it there.
    assert sandbox.status()["daemon"]["pid"] == pid
    made.emit({"a": 2.0}, step=1)
    assert made.finish(30)
    sandbox.drain()
    found = read_scalars(sandbox.event_files("stale"))
    assert_exactly(found, points([("a", 0, 1.0), ("a", 1, 2.0)]))


def test_stale_files_of_every_kind(sandbox: Sandbox) -> None:
    """Sockets nobody listens at, an empty file, damaged locks, the mark of a stopped daemon."""
    sandbox.runtime.mkdir(mode=0o700)
    for name in ("data.sock", LONGEST_NAME):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(sandbox.runtime / name))
    (sandbox.runtime / "ctl.sock").touch()
    (sandbox.runtime / "daemon.lock").write_bytes(b"\xff{" * 100)
    (sandbox.runtime / "launch.lock").write_bytes(b"")
    (sandbox.runtime / "stopped").touch()
    sandbox.state.mkdir(mode=0o700)
    (sandbox.state / "daemon.lock").write_bytes(b"\xff")
    asked = sandbox.cli("status")
    assert asked.returncode == 1
    assert "Traceback" not in asked.stderr
    daemon = sandbox.serve()
    assert sandbox.status()["daemon"]["pid"] == daemon.pid
    assert not (sandbox.runtime / "stopped").exists()


def test_a_lock_that_is_held_by_no_daemon(sandbox: Sandbox) -> None:
    """A process that holds the file for reasons of its own: refused with a sentence, no guess."""
    import fcntl

    sandbox.runtime.mkdir(mode=0o700)
    with open(sandbox.paths.lock, "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = sandbox.cli("serve", timeout_s=30)
    assert done.returncode == 1
    assert "pid unknown" in done.stderr
    assert "Traceback" not in done.stderr
    sandbox.serve().process.send_signal(signal.SIGTERM)


def test_the_longest_path_and_one_byte_more(
    sandbox: Sandbox, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """107 bytes work; 108 are refused by every command and by `connect`, with a shorter path."""
    room = MAX_SOCKET_PATH_BYTES - len(f"{sandbox.root}//{LONGEST_NAME}")
    fits, too_long = sandbox.root / ("x" * room), sandbox.root / ("x" * (room + 1))
    assert len(os.fsencode(fits / LONGEST_NAME)) == MAX_SOCKET_PATH_BYTES
    for command in (("serve",), ("start",), ("run", "--", "true"), ("tail",), ("drain",)):
        done = sandbox.cli(*command, SIDESTEP_RUNTIME_DIR=str(too_long))
        assert done.returncode == 1, command
        assert "107" in done.stderr
        assert "Set SIDESTEP_RUNTIME_DIR to a shorter path" in done.stderr
        assert "Traceback" not in done.stderr
    assert not too_long.exists()
    monkeypatch.setenv("SIDESTEP_RUNTIME_DIR", str(too_long))
    with pytest.raises(SidestepError, match=r"takes 107.*shorter path"):
        connect("long")

    done = sandbox.cli("serve", SIDESTEP_ENDPOINT=f"ipc://{too_long}/{LONGEST_NAME}")
    assert done.returncode == 1
    assert "107 bytes" in done.stderr

    sandbox.runtime = fits
    sandbox.paths = RuntimePaths(str(fits))
    sandbox.serve()
    monkeypatch.setenv("SIDESTEP_RUNTIME_DIR", str(fits))
    made = connect("fits")
    made.emit({"a": 1.0}, step=0)
    assert made.finish(30)

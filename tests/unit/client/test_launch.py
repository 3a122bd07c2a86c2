"""A daemon is started when there is none: one, detached, and never at the trainer's expense."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidestep.client import launch
from sidestep.client.launch import Launcher, daemon_is_running
from sidestep.proto.paths import RuntimePaths

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have been run."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


@pytest.fixture
def hold_lock(places: RuntimePaths) -> Iterator[Any]:
    """Holds a lock of the runtime directory, as a daemon does."""
    os.makedirs(places.directory)
    files: list[int] = []

    def hold(path: str) -> int:
        files.append(os.open(path, os.O_RDWR | os.O_CREAT))
        fcntl.flock(files[-1], fcntl.LOCK_EX)
        return files[-1]

    yield hold
    for fd in files:
        os.close(fd)


def test_whether_a_daemon_is_running(places: RuntimePaths, hold_lock: Any) -> None:
    assert not daemon_is_running(places)
    Path(places.lock).write_text("{}")
    assert not daemon_is_running(places)
    fd = hold_lock(places.lock)
    assert daemon_is_running(places)
    fcntl.flock(fd, fcntl.LOCK_UN)
    assert not daemon_is_running(places)


def test_where_one_runs_none_is_started(
    places: RuntimePaths, hold_lock: Any, launched: list[list[str]]
) -> None:
    hold_lock(places.lock)
    Launcher(places, {}).ensure(100.0)
    assert launched == []


def test_where_one_is_being_started_none_is_started(
    places: RuntimePaths, hold_lock: Any, launched: list[list[str]]
) -> None:
    hold_lock(places.launch_lock)
    launcher = Launcher(places, {})
    for now in (100.0, 101.0, 102.0):
        launcher.ensure(now)
    assert launched == []


def test_how_it_is_started(places: RuntimePaths, launched: list[list[str]]) -> None:
    Launcher(places, {}).ensure(100.0)
    (command,) = launched
    assert command[0] == "/bin/sh"
    assert [sys.executable, "-P", "-m", "sidestep.sidecar", "serve"] == command[4:9]
    assert "--leave-when-idle" in command
    assert os.stat(places.directory).st_mode & 0o777 == 0o700


def test_it_tries_again_ever_more_rarely_and_says_so_once(
    places: RuntimePaths, launched: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    launcher = Launcher(places, {})
    now = 100.0
    times: list[float] = []
    while now < 600:
        before = len(launched)
        launcher.ensure(now)
        if len(launched) > before:
            times.append(now - 100)
        now += 0.25
    # The first wait is the first one; then they double, up to half a minute.
    assert times[:7] == [0, 1, 3, 7, 15, 31, 61]
    assert times[-1] - times[-2] == 30
    assert len(caplog.records) == 1
    assert places.log in caplog.text
    launcher.connected()
    launcher.ensure(now := now + 100)
    launcher.ensure(now + 1.0)
    assert len(launched) == len(times) + 2


def test_one_that_a_user_stopped_is_not_started_again(
    places: RuntimePaths, launched: list[list[str]]
) -> None:
    os.makedirs(places.directory)
    Path(places.stopped).write_text("")
    launcher = Launcher(places, {})
    launcher.ensure(100.0)
    assert len(launched) == 1  # a new trainer wants one
    launcher.ensure(200.0)
    assert len(launched) == 1  # an old one does not
    os.unlink(places.stopped)
    launcher.ensure(300.0)
    assert len(launched) == 2


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), ValueError("embedded null byte"), MemoryError()]
)
def test_nothing_that_fails_is_raised(
    places: RuntimePaths,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    launcher = Launcher(places, {})
    for now in (100.0, 200.0, 300.0):
        launcher.ensure(now)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "cannot start the daemon" in record.getMessage()


def test_a_directory_that_is_not_ours_is_left_alone(
    places: RuntimePaths, launched: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    os.symlink("/", places.directory)
    Launcher(places, {}).ensure(100.0)
    assert launched == []
    assert "cannot start the daemon" in caplog.text


def test_without_the_daemons_packages_it_says_what_to_install(
    places: RuntimePaths,
    launched: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(launch, "_NEEDED", ("typer", "a_package_that_is_not_there"))
    launcher = Launcher(places, {})
    for now in (100.0, 200.0):
        launcher.ensure(now)
    assert launched == []
    assert caplog.text.count("pip install 'sidestep[sidecar]'") == 1


# --- for real ----------------------------------------------------------------------------------

TRAINER = """
import sys
from sidestep import client
sys.stdin.readline()  # both begin at once
client.connect("shared", rank=int(sys.argv[1]), world_size=2, ranks="all")
for step in range(100):
    client.emit({"a": float(step)}, step=step)
assert client.finish(40), client.stats()
assert client.stats().acked == 100
import os, subprocess
children = subprocess.run(["ps", "-o", "comm=", "--ppid", str(os.getpid())],
                          capture_output=True, text=True).stdout.split()
assert children == ["ps"], children
"""


def test_two_trainers_at_once_start_one_daemon(places: RuntimePaths) -> None:
    trainers = [
        subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(rank)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in (0, 1)
    ]
    for trainer in trainers:
        assert trainer.stdin is not None
        trainer.stdin.write("go\n")
        trainer.stdin.flush()
    log = Path(places.log)
    try:
        for trainer in trainers:
            _, errors = trainer.communicate(timeout=50)
            assert trainer.returncode == 0, errors + log.read_text()
            assert errors == ""
        daemon = json.loads(Path(places.lock).read_text())
        assert log.read_text().count("sidestep is ready") == 1
        assert "runs already" not in log.read_text()
        # It is nobody's child here, and the head of no trainer's session.
        status = Path(f"/proc/{daemon['pid']}/stat").read_text().rpartition(") ")[2].split()
        parent, _, session = map(int, status[1:4])
        assert parent not in {os.getpid(), *(trainer.pid for trainer in trainers)}
        assert session not in {os.getsid(0), *(trainer.pid for trainer in trainers)}
    finally:
        for trainer in trainers:
            if trainer.poll() is None:
                trainer.kill()
            trainer.wait()
        _end_daemon(places)
    assert not daemon_is_running(places)


def _end_daemon(places: RuntimePaths) -> None:
    with open(places.lock) as lock:
        text = lock.read()
        if text:
            os.kill(json.loads(text)["pid"], signal.SIGTERM)
        fcntl.flock(lock, fcntl.LOCK_SH)  # until it has gone

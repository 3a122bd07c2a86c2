"""What a service manager hears of a daemon: a real daemon, a real datagram socket."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from sidestep.sidecar.cli.control_client import NoAnswerError
from tests.support.held_thread import held, threads
from tests.support.sandbox import SIDESTEP, Daemon, Sandbox
from tests.support.waiting import wait_until

PERIOD_S = 0.4
SILENCE_S = 2 * PERIOD_S


class Manager:
    """The manager's end: systemd's side of `sd_notify(3)`."""

    def __init__(self, address: str) -> None:
        self.environment = {
            "NOTIFY_SOCKET": address,
            "WATCHDOG_USEC": str(round(PERIOD_S * 1e6)),
        }
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(30.0)

    def hear(self) -> dict[str, str]:
        """The next message."""
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())

    def await_key(self, key: str) -> dict[str, str]:
        """The next message that says `key`."""
        while key not in (heard := self.hear()):
            pass
        return heard

    def pets(self, seconds: float) -> int:
        """How often the watchdog is petted in so many seconds from now on."""
        self.waiting()
        ends, count = time.monotonic() + seconds, 0
        while (left := ends - time.monotonic()) > 0:
            self._socket.settimeout(left)
            with suppress(TimeoutError):
                count += "WATCHDOG" in self.hear()
        self._socket.settimeout(30.0)
        return count

    def waiting(self) -> int:
        """How many messages have come and were not heard; they are gone now."""
        count = 0
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            while self._socket.recv(4096):
                count += 1
        self._socket.settimeout(30.0)
        return count

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(sandbox: Sandbox) -> Iterator[Manager]:
    made = Manager(str(sandbox.root / "notify"))
    yield made
    made.close()


def hold_ingest(sandbox: Sandbox, daemon: Daemon, stack: ExitStack) -> None:
    """Stop ingest's thread, the first that the daemon starts; the main thread answers still."""
    for _ in range(20):
        with ExitStack() as attempt:
            attempt.enter_context(held(threads(daemon.pid)[1]))
            with suppress(NoAnswerError):  # it had the interpreter's lock
                sandbox.control.request("hello", 1.0)
                stack.enter_context(attempt.pop_all())
                return
    raise AssertionError("the main thread never answers")


def test_ready_alive_and_stopping_are_said(sandbox: Sandbox) -> None:
    manager = Manager(f"@{sandbox.root.name}")  # a name in no file system; the others use a path
    daemon = sandbox.serve_unready(**manager.environment)
    first = manager.hear()
    assert first["READY"] == "1"
    assert str(sandbox.paths.data_endpoint) in first["STATUS"]
    assert sandbox.daemon_pid() == daemon.pid, "it said READY before it could be asked"
    for _ in range(3):
        manager.await_key("WATCHDOG")
    daemon.process.terminate()
    last = manager.await_key("STOPPING")
    # As long as the sinks may take (drain_timeout_s is 60), and its own closing.
    assert 60e6 < int(last["EXTEND_TIMEOUT_USEC"]) <= 90e6
    assert daemon.process.wait(30) == 0
    manager.close()


def test_a_daemon_that_hangs_anywhere_pets_no_watchdog(sandbox: Sandbox, manager: Manager) -> None:
    daemon = sandbox.serve(**manager.environment)
    manager.await_key("WATCHDOG")
    with ExitStack() as stack:
        hold_ingest(sandbox, daemon, stack)
        assert manager.pets(SILENCE_S) <= 1, "ingest hangs: one may have been due"
        stalled = sandbox.status()["daemon"]["stalled_s"]
        assert stalled > PERIOD_S, "and the main loop lives and knows it"
    manager.await_key("WATCHDOG")  # both live again
    assert sandbox.status()["daemon"]["stalled_s"] < stalled

    with held(daemon.pid):
        assert manager.pets(SILENCE_S) == 0, "the main loop hangs"
    manager.await_key("WATCHDOG")

    # What the manager does then; the log is to say where each thread was.
    daemon.process.send_signal(signal.SIGABRT)
    assert daemon.process.wait(30) == -signal.SIGABRT
    assert "ingest/thread.py" in daemon.said()
    assert "in serve" in daemon.said()


def test_the_environment_of_somebody_else_is_not_used(sandbox: Sandbox, manager: Manager) -> None:
    """A trainer that is a service starts a daemon: it must not speak for that service."""
    started = subprocess.run(
        [*SIDESTEP, "start"], env=sandbox.env(**manager.environment), timeout=60, check=False
    )
    assert started.returncode == 0
    assert manager.pets(0.5) == 0
    assert sandbox.cli("stop", "--now").returncode == 0
    assert manager.waiting() == 0


def test_a_manager_that_has_gone_is_only_missed(sandbox: Sandbox) -> None:
    nowhere = str(Path(sandbox.root) / "nobody")
    daemon = sandbox.serve(NOTIFY_SOCKET=nowhere, WATCHDOG_USEC="200000")
    wait_until(lambda: "cannot be told READY=1" in daemon.said(), 10, daemon.said)
    assert daemon.terminate() == 0
    assert daemon.said().count("cannot be told") == 1

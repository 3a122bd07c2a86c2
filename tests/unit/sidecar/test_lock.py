"""One daemon in a runtime directory; probes and dead holders do not get in its way."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sidestep.proto.paths import RuntimePaths
from sidestep.sidecar.service.lock import AlreadyRunningError, DaemonLock, held


@pytest.fixture
def paths(tmp_path: Path) -> RuntimePaths:
    return RuntimePaths(str(tmp_path / "rt"))


def test_the_second_is_told_who_holds_it(paths: RuntimePaths) -> None:
    lock = DaemonLock(paths)
    lock.announce({"pid": 4711})
    with pytest.raises(AlreadyRunningError, match="4711") as caught:
        DaemonLock(paths)
    assert caught.value.pid == 4711
    lock.release()
    DaemonLock(paths).release()


def test_the_directory_is_private(paths: RuntimePaths) -> None:
    DaemonLock(paths).release()
    assert os.stat(paths.directory).st_mode & 0o777 == 0o700


def test_a_stale_text_without_a_lock_is_no_daemon(paths: RuntimePaths) -> None:
    os.makedirs(paths.directory)
    Path(paths.lock).write_text('{"pid": 1}')
    DaemonLock(paths).release()


def test_a_probe_does_not_stop_a_daemon_from_starting(paths: RuntimePaths) -> None:
    os.makedirs(paths.directory)
    with open(paths.lock, "w") as probe:
        fcntl.flock(probe, fcntl.LOCK_SH)
        timer = threading.Timer(0.1, lambda: fcntl.flock(probe, fcntl.LOCK_UN))
        timer.start()
        DaemonLock(paths).release()
        timer.join()


def test_a_holder_counts_while_its_process_lives(paths: RuntimePaths) -> None:
    os.makedirs(paths.holders)
    assert not held(paths.holders)
    script = (
        "import fcntl, sys\nf = open(sys.argv[1], 'w')\nfcntl.flock(f, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    path = os.path.join(paths.holders, "1")
    holder = subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    with holder, holder.stdout, holder.stdin:
        assert holder.stdout.readline() == b"held\n"
        assert held(paths.holders)
        holder.kill()
        holder.wait(10)
        assert not held(paths.holders)
        assert os.listdir(paths.holders) == []

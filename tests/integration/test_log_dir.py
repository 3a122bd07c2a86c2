"""A log directory that cannot be written: visible, retried, and nothing is lost."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support.fixtures import Connect
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox

pytestmark = pytest.mark.timeout(120)

EXPECTED = points(("a", step, step / 3) for step in range(1000))


def test_file_in_its_place(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.logs.write_text("not a directory")
    sandbox.serve()
    made = connect("blocked")
    for step in range(1000):
        made.emit({"a": step / 3}, step=step)
    assert made.flush(30), "flush speaks of the journal, not of the sinks"
    sink = sandbox.await_sink("blocked", "degraded")
    assert str(sandbox.logs) in sink["error"]
    assert sink["lag_records"] == 1000
    shown = sandbox.cli("status")
    assert shown.returncode == 0
    assert "tensorboard degraded" in shown.stdout
    assert made.finish(30)
    assert sandbox.cli("drain", "--timeout", "0.5").returncode == 1

    sandbox.logs.unlink()
    sandbox.drain(60)
    assert_exactly(read_scalars(sandbox.event_files("blocked")), EXPECTED)
    sink = sandbox.await_sink("blocked", "closed")
    assert (sink["lag_records"], sink["error"]) == (0, None)


@pytest.fixture
def mounted(sandbox: Sandbox) -> Iterator[Sandbox]:
    """The log directory as a file system of 1 MiB that can be filled and made read-only."""
    sandbox.logs.mkdir()
    if not _mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(sandbox.logs)):
        pytest.skip("this machine does not let us mount a file system")
    yield sandbox
    subprocess.run(["umount", "-l", str(sandbox.logs)], check=True, timeout=30)


def _mount(*arguments: str) -> bool:
    if shutil.which("mount") is None:
        return False
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, timeout=30)
    return done.returncode == 0


def test_read_only_in_the_middle_of_a_run(mounted: Sandbox, connect: Connect) -> None:
    mounted.serve()
    made = connect("read-only")
    for step in range(500):
        made.emit({"a": step / 3}, step=step)
    assert made.flush(30)
    mounted.await_run("read-only")
    mounted.await_sink("read-only", "ok")
    # A file that is open for writing keeps a file system from becoming read-only.
    for worker in mounted.workers():
        worker.kill()
        worker.wait(10)
    assert _mount("-o", "remount,ro", str(mounted.logs))
    for step in range(500, 1000):
        made.emit({"a": step / 3}, step=step)
    assert made.flush(30)
    sink = mounted.await_sink("read-only", "degraded")
    assert made.finish(30)
    assert sink["error"]
    assert _mount("-o", "remount,rw", str(mounted.logs))
    mounted.drain(60)
    assert_exactly(read_scalars(mounted.event_files("read-only")), EXPECTED)


def test_full_in_the_middle_of_a_run(mounted: Sandbox, connect: Connect) -> None:
    mounted.serve()
    made = connect("full")
    for step in range(100):
        made.emit({"a": step / 3}, step=step)
    assert made.flush(30)
    mounted.await_sink("full", "ok")
    ballast = mounted.logs / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096) == 4096:
            pass
    for step in range(100, 1000):
        made.emit({"a": step / 3}, step=step)
    assert made.flush(30)
    sink = mounted.await_sink("full", "degraded")
    assert "No space left" in sink["error"]
    assert made.finish(30)
    ballast.unlink()
    mounted.drain(60)
    assert_exactly(read_scalars(mounted.event_files("full")), EXPECTED)


def test_deleted_in_the_middle_of_a_run(sandbox: Sandbox, connect: Connect) -> None:
    """What was in it is gone, as the user wished; what comes after it is written."""
    sandbox.serve()
    made = connect("deleted")
    made.emit({"a": 0.0}, step=0)
    assert made.flush(30)
    sandbox.await_sink("deleted", "ok")
    sandbox.await_run("deleted")
    sandbox.drain()
    shutil.rmtree(sandbox.logs)
    for step in range(1, 100):
        made.emit({"a": step / 3}, step=step)
    assert made.finish(30)
    sandbox.drain()
    expected = points(("a", step, step / 3) for step in range(1, 100))
    assert_exactly(read_scalars(sandbox.event_files("deleted")), expected)


def test_each_run_has_its_own_directory(sandbox: Sandbox, connect: Connect) -> None:
    sandbox.serve()
    elsewhere = sandbox.root / "elsewhere"
    one, other = connect("same"), connect("same", log_dir=elsewhere)
    one.emit({"a": 1.0}, step=0)
    other.emit({"a": 2.0}, step=0)
    assert one.finish(30)
    assert other.finish(30)
    sandbox.drain()
    files = sorted((elsewhere / "tensorboard" / "same").glob("events*"))
    assert_exactly(read_scalars(files), points([("a", 0, 2.0)]))
    assert_exactly(read_scalars(sandbox.event_files("same")), points([("a", 0, 1.0)]))


@pytest.mark.parametrize("name", ["../../outside", "/etc/x", "a/b", "..", "x" * 1000, "a\nb", "🙂"])
def test_no_name_leads_out_of_it(sandbox: Sandbox, connect: Connect, name: str) -> None:
    sandbox.serve()
    made = connect(name)
    made.emit({"a": 1.0}, step=0)
    assert made.finish(30)
    sandbox.drain()
    (folder,) = (sandbox.logs / "tensorboard").iterdir()
    assert folder.is_dir()
    assert_exactly(read_scalars(sorted(folder.glob("events*"))), points([("a", 0, 1.0)]))
    status = sandbox.run_status(name)
    assert status

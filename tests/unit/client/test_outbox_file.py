"""An outbox finds memory that can hold it, is its client's alone, and goes when it is done."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidestep.client import outbox_file
from sidestep.proto import LocalProtocolError
from sidestep.proto.segments import Outbox as Buffer
from tests.unit.client.outboxes import HELLO

BYTES = 256 << 10


@pytest.fixture
def memory_dir() -> Iterator[Path]:
    """A folder on a file system in memory."""
    if not outbox_file.is_memory("/dev/shm"):
        pytest.skip("no file system in memory here")
    path = Path(f"/dev/shm/sd{os.getpid()}")
    path.mkdir(mode=0o700)
    yield path
    subprocess.run(["rm", "-rf", str(path)], check=True)


def create(*directories: Path, nbytes: int = BYTES) -> outbox_file.OutboxMemory:
    return outbox_file.create([str(d) for d in directories], nbytes, HELLO)


def locked(path: str) -> bool:
    """As another process sees it: the lock is this process's own."""
    code = (
        "import fcntl, os, sys\n"
        f"fd = os.open({path!r}, os.O_RDWR)\n"
        "try: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except OSError: sys.exit(3)"
    )
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 3


def test_it_is_made_in_memory_first(memory_dir: Path, tmp_path: Path) -> None:
    first, last = tmp_path / "rt" / "outboxes", tmp_path / "st" / "outboxes"
    memory = create(first, memory_dir / "a" / "b", last)
    path = Path(memory.path)
    assert path == memory_dir / "a" / "b" / (HELLO.uuid.hex() + ".outbox")
    assert not first.exists()
    assert not last.exists()
    assert path.stat().st_size == BYTES
    assert path.stat().st_blocks * 512 >= BYTES  # reserved, and not sparse
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == path.parent.parent.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert locked(memory.path)
    # (Looked at in its own process, a file loses its lock when it is closed.)
    data = bytes(memory.layout.buffer)
    assert Buffer.attach(memoryview(data)).hello() == replace(HELLO, outbox=str(path))
    memory.layout.close()
    memory.close(delete=False)
    assert not locked(memory.path)
    memory.close(delete=True)
    assert not path.exists()


def test_what_is_written_is_in_the_file(tmp_path: Path) -> None:
    memory = create(tmp_path / "outboxes")
    memory.layout.buffer[-1] = 7
    assert Path(memory.path).read_bytes()[-1] == 7
    memory.layout.close()
    memory.close(delete=True)
    assert not Path("/proc/self/maps").read_text().count(memory.path)


def test_closing_while_somebody_looks_at_it(tmp_path: Path) -> None:
    memory = create(tmp_path / "outboxes")
    view = memory.layout.buffer
    memory.close(delete=False)
    assert view[0] == ord("S")  # no crash
    assert not locked(memory.path)


def test_else_on_disk(tmp_path: Path) -> None:
    memory = create(tmp_path / "rt", tmp_path / "st")
    assert Path(memory.path).parent == tmp_path / "st"  # the last one, wherever it is
    assert not (tmp_path / "rt").exists()
    memory.close(delete=True)


def test_else_in_private_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    memory = create(tmp_path / "file" / "st")
    assert memory.path == ""
    assert memory.layout.hello() == HELLO
    assert memory.layout.buffer.nbytes == BYTES
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "are lost if this process is killed. Tried" in record.getMessage()
    assert str(tmp_path / "file" / "st") in record.getMessage()
    memory.layout.close()
    memory.close(delete=True)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EOPNOTSUPP, errno.ENOLCK])
@pytest.mark.parametrize("call", ["posix_fallocate", "lockf", "rename"])
def test_a_place_that_fails_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patched:
        patched.setattr(fcntl if call == "lockf" else os, call, fail)
        memory = create(tmp_path / "st")
    assert memory.path == ""
    assert list((tmp_path / "st").iterdir()) == []


def test_where_there_is_too_little_room_for_others_it_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.statvfs(tmp_path)

    class Statvfs:
        f_bavail, f_frsize, f_blocks = 2 * BYTES // 4096 - 1, 4096, 1000

    monkeypatch.setattr(os, "statvfs", lambda _: Statvfs)
    memory = create(tmp_path / "st")
    assert memory.path == ""
    assert "more than half of what is free" in caplog.text
    Statvfs.f_bavail += 1
    memory = create(tmp_path / "st")
    assert memory.path
    memory.close(delete=True)
    assert real.f_frsize > 0


@pytest.fixture
def tiny_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 300 KiB, as a container's shared memory may be."""
    path = tmp_path / "tiny"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_tmpfs_that_is_too_small(
    tiny_tmpfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outbox_file.is_memory(str(tiny_tmpfs))
    memory = create(tiny_tmpfs / "outboxes", tmp_path / "st", nbytes=1 << 20)
    assert Path(memory.path).parent == tmp_path / "st"
    memory.close(delete=True)
    # Even where it cannot be told beforehand: the reservation fails, and no store ever does.
    monkeypatch.setattr(os, "statvfs", lambda _: type("Unlimited", (), {"f_blocks": 0}))
    memory = create(tiny_tmpfs / "outboxes", tmp_path / "st", nbytes=1 << 20)
    assert Path(memory.path).parent == tmp_path / "st"
    memory.layout.buffer[:] = bytes(1 << 20)
    memory.close(delete=True)
    assert list((tiny_tmpfs / "outboxes").iterdir()) == []


def test_drafts_of_clients_that_were_killed_are_removed(tmp_path: Path) -> None:
    directory = tmp_path / "st"
    directory.mkdir(mode=0o700)
    old, fresh, other = (directory / name for name in ("a.outbox.new", "b.outbox.new", "c.outbox"))
    for path in (old, fresh, other):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    create(directory).close(delete=True)
    assert sorted(directory.iterdir()) == [fresh, other]


def test_an_outbox_too_small_for_what_it_must_say(tmp_path: Path) -> None:
    hello = replace(HELLO, run=replace(HELLO.run, config={"a": "x" * 230_000}))
    with pytest.raises(LocalProtocolError, match="too small"):
        outbox_file.create([str(tmp_path / "st")], BYTES, hello)
    assert list((tmp_path / "st").iterdir()) == []


# --- private directories -------------------------------------------------------------------------


def test_a_directory_is_made_private(tmp_path: Path) -> None:
    outbox_file.make_private(str(tmp_path / "a" / "b"))
    (tmp_path / "b").mkdir(mode=0o755)
    outbox_file.make_private(str(tmp_path / "b"))
    for path in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "b"):
        assert path.stat().st_mode & 0o777 == 0o700


def test_a_link_or_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="not a directory of this user's"):
        outbox_file.make_private(str(tmp_path / "link"))
    with pytest.raises(OSError, match="exists"):
        outbox_file.make_private(str(tmp_path / "file"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_somebody_else_has_put_there_is_not_used(tmp_path: Path) -> None:
    everybodys = tmp_path / "tmp"
    everybodys.mkdir()
    everybodys.chmod(0o1777)
    squatted = everybodys / "sidestep-0"
    squatted.mkdir(mode=0o777)
    squatted.chmod(0o777)
    os.chown(squatted, 12345, 12345)
    with pytest.raises(PermissionError, match="belongs to somebody else"):
        outbox_file.make_private(str(squatted / "digest"))
    with pytest.raises(PermissionError, match="not a directory of this user's"):
        outbox_file.make_private(str(squatted))
    outbox_file.make_private(str(everybodys / "ours" / "digest"))


def test_which_directories_are_on_memory(tmp_path: Path, memory_dir: Path) -> None:
    assert outbox_file.is_memory(str(memory_dir / "not" / "there" / "yet"))
    assert not outbox_file.is_memory("/proc")
    assert not outbox_file.is_memory("/")

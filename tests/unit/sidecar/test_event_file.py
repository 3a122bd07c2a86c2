"""The event file: its framing, whole records or none, and no way out of its folder."""

from __future__ import annotations

import errno
import gc
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from sidestep.sidecar.sinks.event_file import (
    EventFile,
    LostFileError,
    open_folder,
    record,
    version_record,
)
from tests.support.event_reader import events
from tests.support.full_disk import file_size_limit

NAME = "events.out.tfevents.1700000000.host.1.0"


@contextmanager
def opened(path: Path, offset: int = 0) -> Iterator[EventFile]:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        file = EventFile(folder, path, offset)
    finally:
        os.close(folder)
    try:
        yield file
    finally:
        file.close()


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Fails a test that leaves a file descriptor open."""
    gc.collect()  # what other tests left would be closed at some moment of this one
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


pytestmark = pytest.mark.usefixtures("descriptors")


# --- framing -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_a_record_is_framed_as_tensorboard_frames_it(body: bytes) -> None:
    theirs = io.BytesIO()
    RecordWriter(theirs).write(body)
    assert record(body) == theirs.getvalue()


def test_the_first_record_is_the_version_event() -> None:
    event = Event(wall_time=1_700_000_000.0, file_version="brain.Event:2")
    assert version_record(1_700_000_000.0) == record(event.SerializeToString())


# --- writing -----------------------------------------------------------------------------------


def test_what_is_written_is_read_by_tensorboard(tmp_path: Path) -> None:
    with opened(tmp_path / NAME) as file:
        file.write(version_record(5.0))
        file.write(bytearray(record(Event(wall_time=6.0, step=-3).SerializeToString())))
    version, second = events(tmp_path / NAME)
    assert version.file_version == "brain.Event:2"
    assert (second.wall_time, second.step) == (6.0, -3)


def test_it_goes_on_at_the_offset_and_cuts_what_is_after_it(tmp_path: Path) -> None:
    whole = record(b"one") + record(b"two")
    for torn in range(len(record(b"one")), len(whole) + 1):
        (tmp_path / NAME).write_bytes(whole[:torn])
        with opened(tmp_path / NAME, len(record(b"one"))) as file:
            file.write(record(b"three"))
            assert file.offset == len(record(b"one") + record(b"three"))
        assert (tmp_path / NAME).read_bytes() == record(b"one") + record(b"three")


def test_a_write_that_comes_short_is_carried_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite

    def stingy(fd: int, data: memoryview, offset: int) -> int:
        return pwrite(fd, data[:7], offset)

    monkeypatch.setattr(os, "pwrite", stingy)
    with opened(tmp_path / NAME) as file:
        file.write(record(bytes(range(100))))
    assert (tmp_path / NAME).read_bytes() == record(bytes(range(100)))


@pytest.mark.chaos
def test_a_write_that_does_not_fit_leaves_nothing_torn(tmp_path: Path) -> None:
    one, two = record(bytes(1000)), record(bytes(3000))
    with opened(tmp_path / NAME) as file:
        file.write(one)
        with file_size_limit(2000), pytest.raises(OSError, match="File too large"):
            file.write(two)
        assert (tmp_path / NAME).read_bytes() == one
        assert file.offset == len(one)
        file.write(two)  # there is room again
    assert (tmp_path / NAME).read_bytes() == one + two


def test_a_second_writer_of_the_same_bytes_does_no_harm(tmp_path: Path) -> None:
    with opened(tmp_path / NAME) as late, opened(tmp_path / NAME) as file:
        file.write(record(b"one"))
        late.write(record(b"one"))
        file.write(record(b"two"))
        late.write(record(b"two"))
    assert (tmp_path / NAME).read_bytes() == record(b"one") + record(b"two")


# --- files that are lost -----------------------------------------------------------------------


def test_a_file_to_be_continued_must_be_there_and_long_enough(tmp_path: Path) -> None:
    with pytest.raises(LostFileError, match="is gone"), opened(tmp_path / NAME, 8):
        pass
    (tmp_path / NAME).write_bytes(bytes(7))
    with pytest.raises(LostFileError, match="7 bytes of the 8"), opened(tmp_path / NAME, 8):
        pass
    assert (tmp_path / NAME).read_bytes() == bytes(7)


def test_it_notices_what_happens_to_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    path = folder / NAME

    def fresh() -> None:
        folder.mkdir(exist_ok=True)
        path.write_bytes(bytes(8))

    fresh()
    with opened(path, 8) as file:
        assert file.loss() is None
        os.truncate(path, 3)
        assert "3 bytes of the 8" in str(file.loss())
        os.truncate(path, 9)
        assert file.loss() is None
        path.unlink()
        assert str(file.loss()).endswith("is gone")
        fresh()
        assert "another file" in str(file.loss())
    with opened(path, 8) as file:
        folder.rename(tmp_path / "elsewhere")
        assert str(file.loss()).endswith("is gone")
        folder.write_bytes(b"a file where the folder was")
        assert str(file.loss()).endswith("is gone")


# --- no way out of the folder ------------------------------------------------------------------


def test_folders_are_made_below_a_root_that_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "logs").symlink_to(tmp_path / "disk")
    for _ in range(2):
        os.close(open_folder(tmp_path / "logs" / "deep", ("tensorboard", "run"), make=True))
    assert (tmp_path / "disk" / "deep" / "tensorboard" / "run").is_dir()


def test_folders_are_not_made_unless_asked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_folder(tmp_path, ("tensorboard", "run"), make=False)
    with pytest.raises(FileNotFoundError):
        open_folder(tmp_path / "logs", ("run",), make=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_below_the_root_is_refused(tmp_path: Path, level: int, target: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    parts = ["tensorboard", "run"]
    link = tmp_path.joinpath("logs", *parts[: level + 1])
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / target)
    with pytest.raises(OSError, match="symbolic link") as caught:
        open_folder(tmp_path / "logs", parts, make=True)
    assert caught.value.filename == str(link)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("part", ["", ".", "..", "a/b", "/", "nul\0"])
def test_a_part_is_one_name(tmp_path: Path, part: str) -> None:
    with pytest.raises(OSError, match="not the name of one folder"):
        open_folder(tmp_path / "logs", ("tensorboard", part), make=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["logs", "tensorboard"]


def test_a_part_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        open_folder(tmp_path, ("tensorboard", "run"), make=True)


def test_the_file_may_be_neither_a_link_nor_a_pipe_nor_a_folder(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path = tmp_path / NAME
    path.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"), opened(path):
        pass
    assert victim.read_bytes() == b"precious"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device") as caught, opened(path):
        pass  # and at once: opening a pipe for writing normally waits for a reader
    assert caught.value.errno == errno.ENXIO
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(OSError, match="not a plain file"), opened(path):
            pass
    finally:
        os.close(reader)
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError), opened(path):
        pass

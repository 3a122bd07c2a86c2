"""The mirror: what was copied is a state that the file had, and at the end the last one."""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings, strategies as st

from sidestep.proto import RunSpec
from sidestep.sidecar.mirror import worker as mirror_worker
from sidestep.sidecar.mirror.copies import Folder, Mirror
from sidestep.sidecar.mirror.worker import MirrorWorker, folders_of
from sidestep.sidecar.supervision.cursor_file import Cursor

NAMES = ("a", "b/c", "b/d")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def storage() -> Any:
    file_system: Any = fsspec.filesystem("memory", skip_instance_cache=True)
    file_system.store.clear()
    return file_system


def found(file_system: Any) -> dict[str, bytes]:
    return {
        path.removeprefix("/root/"): file_system.cat_file(path) for path in file_system.find("root")
    }


def on_disk(folder: Path) -> dict[str, bytes]:
    return {
        f"run/{path.relative_to(folder)}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


STEPS = st.one_of(
    st.tuples(st.sampled_from(("append", "cut", "replace")), st.sampled_from(NAMES)),
    st.tuples(st.just("wait"), st.floats(0, 40)),
    st.tuples(st.sampled_from(("copy", "copy all", "fail")), st.none()),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=30))
def test_a_copy_is_a_state_that_the_file_had(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "b").mkdir()
    file_system, clock = storage(), Clock()
    mirror = Mirror(file_system, "root", 15, clock=clock)
    folders = [Folder(folder, "run")]
    states: dict[str, set[bytes]] = {f"run/{name}": set() for name in NAMES}
    copied_at: dict[str, float] = {}
    written = 0
    for what, which in steps:
        if what in ("append", "cut", "replace"):
            path = folder / which
            old = path.read_bytes() if path.exists() else b""
            written += 1
            new = {"append": old + b"%d," % written, "cut": old[:-1], "replace": b"%d" % written}
            path.write_bytes(new[what])
            # As time passes on a disk: two changes within its clock's grain are one elsewhere too.
            os.utime(path, ns=(written * 10**9, written * 10**9))
            states[f"run/{which}"].add(new[what])
        elif what == "wait":
            clock.now += which
        elif what == "fail":
            broken = Mirror(_Broken(), "root", 15, clock=clock)
            if on_disk(folder):
                with pytest.raises(OSError, match="away"):
                    broken.copy(folders, all_now=True, before_each=lambda _: None)
        else:
            before = found(file_system)
            complete = mirror.copy(folders, all_now=what == "copy all", before_each=lambda _: None)
            after = found(file_system)
            assert all(data in states[name] for name, data in after.items())
            assert not complete or after == on_disk(folder)
            assert complete or what == "copy"
            for name in after:
                if before.get(name) != after[name]:
                    assert what == "copy all" or clock.now - copied_at.get(name, -99) >= 15
                    copied_at[name] = clock.now
    assert mirror.copy(folders, all_now=True, before_each=lambda _: None)
    assert found(file_system) == on_disk(folder)


class _Broken:
    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        raise OSError("away")

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise AssertionError("an object storage has no folders")


def test_a_large_file_is_copied_less_often(tmp_path: Path) -> None:
    (tmp_path / "large").touch()
    file_system, clock = storage(), Clock()
    mirror = Mirror(file_system, "root", 15, clock=clock)

    def copy() -> bool:
        return mirror.copy([Folder(tmp_path, "run")], all_now=False, before_each=lambda _: None)

    assert copy()
    os.truncate(tmp_path / "large", 200_000_000)
    counted: list[str] = []
    file_system.put_file = lambda lpath, rpath, **_: counted.append(rpath)
    clock.now = 49.9
    assert not copy()
    clock.now = 50.0
    assert copy()
    assert counted == ["root/run/large"]


def test_links_and_drafts_are_left_out(tmp_path: Path) -> None:
    inside = tmp_path / "run"
    inside.mkdir()
    (tmp_path / "secret").write_text("not the run's")
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "folder").symlink_to(tmp_path)
    (inside / ".draft.new").touch()
    (inside / "file").touch()
    file_system = storage()
    assert Mirror(file_system, "root", 15).copy(
        [Folder(inside, "run")], all_now=False, before_each=lambda _: None
    )
    assert found(file_system) == {"run/file": b""}


def test_folders_are_made_where_there_are_some(tmp_path: Path) -> None:
    inside = tmp_path / "run" / "below"
    inside.mkdir(parents=True)
    (inside / "file").write_text("x")
    mirror = Mirror(fsspec.filesystem("file"), str(tmp_path / "there"), 15, folders=True)
    assert mirror.copy([Folder(tmp_path / "run", "run")], all_now=False, before_each=lambda _: None)
    assert (tmp_path / "there/run/below/file").read_text() == "x"


def test_of_a_folder_that_others_use_too_only_the_runs_files_are_taken(tmp_path: Path) -> None:
    run = RunSpec("exp", str(tmp_path), {"folder": "."}, None)
    (tmp_path / "main_tag").mkdir()
    (tmp_path / "other_run").mkdir()
    event = "events.out.tfevents.1700000000.host.1.0"
    for name in (event, "checkpoint.pt", f"main_tag/{event}", f"other_run/{event}"):
        (tmp_path / name).write_text(name)
    cursors = {"tensorboard": Cursor(state={"folders": {"main_tag": {}}})}
    file_system = storage()
    Mirror(file_system, "root", 15).copy(
        folders_of(run, cursors), all_now=False, before_each=lambda _: None
    )
    assert sorted(found(file_system)) == [
        f"tensorboard/exp/{event}",
        f"tensorboard/exp/main_tag/{event}",
    ]


class _Slow:
    """A storage that takes its time, or never comes back, for one file."""

    def __init__(self, go_on: threading.Event) -> None:
        self.go_on = go_on

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        assert self.go_on.wait(30)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        raise AssertionError("an object storage has no folders")


@pytest.mark.parametrize("size", [1, 100_000_000])
def test_a_file_that_takes_long_is_not_taken_for_one_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(mirror_worker, "_POLL_S", 0.01)
    folder = tmp_path / "scalars/exp"
    folder.mkdir(parents=True)
    (folder / "file").touch()
    os.truncate(folder / "file", size)
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    go_on = threading.Event()
    worker = MirrorWorker(
        {"url": "memory://x", "interval_s": 15, "file_sinks": ["archive"]},
        RunSpec("exp", str(tmp_path), False),
        str(tmp_path / "cursor"),
        1,
        lambda message: said.put(message["state"]),
        lambda _: (_Slow(go_on), "root"),
    )
    thread = threading.Thread(target=worker.serve, args=(inbox,))
    thread.start()
    # While it copies it goes on to say that it is alive, and not yet that all is well.
    assert [said.get(timeout=30) for _ in range(2)] == ["starting"] * 2
    if size == 1:
        with pytest.raises(queue.Empty):
            said.get(timeout=0.3)
    else:
        assert [said.get(timeout=30) for _ in range(4)] == ["starting"] * 4
    for op in ("hurry", "hurry", "close"):
        inbox.put({"op": op})
    go_on.set()
    thread.join(30)
    assert [said.get() for _ in range(said.qsize())][-2:] == ["ok", "closed"]

"""The TensorBoard sink: exactly once through every crash, and never without a file to write to."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sidestep.proto import Array, RunSpec, Value
from sidestep.sidecar.rows.points import MixedBlock, Points
from sidestep.sidecar.sinks import folder_log, tensorboard
from sidestep.sidecar.sinks.base import Sink, SinkContext, SinkState
from sidestep.sidecar.sinks.tensorboard import TensorBoardSink
from tests.support.event_reader import block, events, scalars, scalars_of, text
from tests.support.full_disk import file_size_limit

NOW = 1_700_000_000


@dataclass
class Home:
    """A worker's part: the log directory, and what it stored."""

    log_dir: Path
    run_dir: str = "run"
    state: SinkState | None = None
    cursor: int = 0
    said: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.log_dir / "tensorboard" / self.run_dir

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("events.out.tfevents.*"))

    def save(self, state: SinkState) -> None:
        self.state = dict(state)

    def open(self, sink: TensorBoardSink | None = None) -> TensorBoardSink:
        sink = sink or TensorBoardSink(clock=lambda: NOW + 0.75)
        run = RunSpec(name="a/run", log_dir=str(self.log_dir))
        sink.open(SinkContext(run, self.run_dir, self.state, self.save, self.said.append))
        return sink

    def commit(self, sink: Sink) -> None:
        self.state = sink.commit()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "logs")


def one(step: int, value: float = 0.5) -> Points:
    return block(["train/loss"], [step], [[value]])


# --- what is written ---------------------------------------------------------------------------


def test_points_reach_the_file_in_their_order(home: Home) -> None:
    sink = home.open()
    points = [
        one(1),
        text("notes", 1, "hello"),
        block(["a", "b"], [2, 3], [[1, 2], [3, 4]]),
        one(0),
    ]
    sink.write(points)
    home.commit(sink)
    sink.close(finished=True)

    (path,) = home.files
    assert [event.step for event in events(path)] == [0, 1, 1, 2, 3, 0]
    assert scalars(path) == scalars_of(points)
    assert home.state == {"file": path.name, "offset": path.stat().st_size, "skipped": 0}


def test_the_file_is_named_as_tensorboard_names_it_and_says_its_version(home: Home) -> None:
    home.open().close(finished=True)
    (path,) = home.files
    *_, second, host, pid, number = path.name.replace(os.uname().nodename, "host").split(".")
    assert path.name.startswith("events.out.tfevents.")
    assert (second, host, pid) == (str(NOW), "host", str(os.getpid()))
    assert number.isdigit()
    (version,) = events(path)
    assert (version.file_version, version.wall_time) == ("brain.Event:2", NOW)


def test_the_name_is_stored_before_the_file_exists(home: Home) -> None:
    seen: list[list[Path]] = []

    class Watching(Home):
        def save(self, state: SinkState) -> None:
            seen.append(self.files)
            super().save(state)

    watching = Watching(home.log_dir)
    sink = watching.open()
    assert seen == [[]]
    (path,) = watching.files
    assert watching.state == {"file": path.name, "offset": 0, "skipped": 0}
    sink.close(finished=True)


def test_much_at_once_is_handed_over_in_portions(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard, "_FLUSH_BYTES", 1000)
    monkeypatch.setattr(tensorboard, "_GATHERED_NUMBERS", 10)
    sink = home.open()
    points = [one(step) for step in range(100)]
    sink.write(points)
    assert scalars(*home.files) == scalars_of(points)[: len(scalars(*home.files))] != []
    home.commit(sink)
    assert scalars(*home.files) == scalars_of(points)
    sink.close(finished=True)


def test_a_sink_that_was_closed_can_be_opened_again(home: Home) -> None:
    sink = home.open()
    for step in range(3):
        sink.write([one(step)])
        home.commit(sink)
        sink.write([one(100 + step)])  # never committed: it will be handed over again
        sink.close(finished=False)
        sink.close(finished=False)
        home.open(sink)
    sink.close(finished=True)
    assert [step for _tag, step, _value in scalars(*home.files)] == [0, 1, 2]


def test_numbers_alone_load_no_library_for_values(tmp_path: Path) -> None:
    program = """if True:
        import sys
        import numpy as np
        from sidestep.proto import RunSpec
        from sidestep.sidecar.rows.points import ScalarBlock
        from sidestep.sidecar.sinks.base import SinkContext
        from sidestep.sidecar.sinks.tensorboard import TensorBoardSink
        sink = TensorBoardSink()
        spec = RunSpec("run", sys.argv[1])
        sink.open(SinkContext(spec, "run", None, lambda state: None, print))
        sink.write([ScalarBlock(("a",), np.ones(1, "i8"), np.ones(1, "i8"), np.ones((1, 1)))])
        sink.commit()
        print(*{"torch", "tensorboard", "google.protobuf", "PIL"} & set(sys.modules))
    """
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.split() == []


# --- values that cannot be shown ---------------------------------------------------------------


def test_what_cannot_be_shown_is_skipped_counted_and_said_once(home: Home) -> None:
    sink = home.open()
    bad = Value("image", "picture", 1, 1, {"layout": "CHW"}, [Array("uint8", (2, 2), bytes(4))])
    unknown = Value("hologram", "h", 1, 1)
    moments = Value("moments", "m", 1, 1)
    for _ in range(2):
        sink.write([one(1), bad, unknown, moments, one(2)])
    home.commit(sink)
    assert [step for _tag, step, _value in scalars(*home.files)] == [1, 2, 1, 2]
    assert home.state is not None
    assert home.state["skipped"] == 4
    assert ["'image'" in home.said[0], "'hologram'" in home.said[1]] == [True, True]
    assert len(home.said) == 2
    sink.close(finished=True)


def test_a_peer_cannot_flood_the_log_with_kinds(home: Home) -> None:
    sink = home.open()
    sink.write([Value(f"kind {i}", "tag", 1, 1) for i in range(1000)])
    home.commit(sink)
    assert home.state is not None
    assert home.state["skipped"] == 1000
    assert len(home.said) == 16
    sink.close(finished=True)


def test_what_was_skipped_before_a_crash_is_not_counted_twice(home: Home) -> None:
    unknown = Value("hologram", "h", 1, 1)
    sink = home.open()
    sink.write([unknown])
    home.commit(sink)
    sink.write([unknown, unknown])
    home.files[0].unlink()
    sink.write([one(1)])
    sink.commit()  # makes a new file, whose name is stored; then the worker dies
    sink.close(finished=False)
    sink = home.open()
    sink.write([unknown, unknown, one(1)])
    home.commit(sink)
    assert home.state is not None
    assert home.state["skipped"] == 3
    sink.close(finished=True)


# --- crashes -----------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is no more."""


@dataclass
class Fate:
    """Lets a number of side effects happen, the last one in part, and then kills the process.

    A side effect is a write (of which any number of bytes may have come through), a cut, a file's
    taking another's place, or the storing of a state.
    """

    effects: int
    fraction: float

    def strikes(self) -> bool:
        self.effects -= 1
        return self.effects < 0

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        if self.strikes():
            _pwrite(fd, data[: int(len(data) * self.fraction)], offset)
            raise Killed
        return _pwrite(fd, data, offset)

    def ftruncate(self, fd: int, length: int) -> None:
        if self.strikes():
            if self.fraction > 0.5:
                _ftruncate(fd, length)
            raise Killed
        _ftruncate(fd, length)

    def replace(self, *args: Any, **folders: Any) -> None:
        self.save(lambda: _replace(*args, **folders))

    def save(self, store: Callable[[], None]) -> None:
        if self.strikes():
            if self.fraction > 0.5:
                store()
            raise Killed
        store()


_pwrite, _ftruncate, _replace = os.pwrite, os.ftruncate, os.replace


@dataclass
class MortalHome(Home):
    """A home whose every access to the disk may be the last."""

    fate: Fate = field(default_factory=lambda: Fate(1 << 30, 0))

    def save(self, state: SinkState) -> None:
        self.fate.save(lambda: super(MortalHome, self).save(state))

    def pwrite(self, *args: Any) -> int:
        return self.fate.pwrite(*args)

    def ftruncate(self, *args: Any) -> None:
        self.fate.ftruncate(*args)

    def replace(self, *args: Any, **folders: Any) -> None:
        self.fate.replace(*args, **folders)

    def live(self, points: Sequence[Points], portion: int, commit_every: int) -> None:
        """Write what comes after the cursor; after a commit, store cursor and state at once."""
        sink = TensorBoardSink(clock=lambda: NOW)
        try:
            self.open(sink)
            cursor = self.cursor
            while cursor < len(points) or self.cursor < len(points):
                for _ in range(commit_every):
                    sink.write(points[cursor : cursor + portion])
                    cursor = min(cursor + portion, len(points))
                state = sink.commit()
                self.fate.save(lambda s=state, c=cursor: self._store(s, c))  # type: ignore[misc]
        finally:
            sink.close(finished=False)  # does nothing but close: a kill does as much

    def _store(self, state: SinkState, cursor: int) -> None:
        self.state, self.cursor = dict(state), cursor


POINTS: list[Points] = [
    one(0),
    block(["a", "b/c"], range(120, 140), [[i, i / 3] for i in range(20)]),
    text("notes", 3, "some words"),
    block(["a"], [5, -5, 1 << 40], [[1], [float("nan")], [1e300]]),
    *[one(step) for step in range(6)],
    MixedBlock(
        (("a",), ("m", "n"), ("o",)),
        np.arange(30) % 3,
        np.arange(110, 140),
        np.arange(1, 31) * 10**9,
        np.arange(40) / 3,
    ),
    Value("histogram", "h", 4, NOW * 10**9, {"bins": None}, [Array("uint8", (9,), b"123456789")]),
    Value("hologram", "unknown", 5, NOW * 10**9),
    one(7),
]


def series(tag: str, folder: str | None, name: str | None = None, **how: bool) -> Value:
    return Value("series", tag, 0, NOW * 10**9, {"folder": folder, "name": name, **how})


def embedding(tag: str, step: int) -> Value:
    info = {"header": None, "metadata": True, "sprite": False}
    arrays = [Array("uint8", (2, 1), b"12"), Array("uint8", (4,), b"a\nb\n")]
    return Value("embedding", tag, step, NOW * 10**9, info, arrays)


BELOW: list[Points] = [
    series("a", "main_a", "main"),
    one(8),
    block(["a", "b/c"], range(30), [[i, -i] for i in range(30)]),
    embedding("e", 9),
    Value(
        "hparams", "h", 9, NOW * 10**9, {"hparams": {"lr": 1}, "metrics": {"m": 2}, "folder": "h/p"}
    ),
    series("b/c", "main_b/c", "main"),
    series("train/loss", None, new_style=True),
    block(["a", "train/loss", "b/c"], range(5), [[i, i / 7, -i] for i in range(5)]),
    Value("series", "x", 0, NOW * 10**9, {"folder": "a/" * 9}),  # too deep
    embedding("f", 9),
    series("a", None),
    Value("purge", "p", 3, NOW * 10**9),
    block(["a", "b/c"], [3], [[1, 2]]),
    embedding("e", 9),
    one(10),
]
"""Points that have folders and files of their own."""


def tree(folder: Path) -> dict[str, bytes]:
    """What is in all files; the name of the one event file of each folder is left out."""
    found: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            name = "events" if "tfevents" in path.name else path.name
            place = str(path.relative_to(folder).with_name(name))
            assert place not in found, "two event files in one folder"
            found[place] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def uncrashed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    home = MortalHome(tmp_path_factory.mktemp("uncrashed"))
    home.live(POINTS + BELOW, portion=len(POINTS + BELOW), commit_every=1)
    return tree(home.folder)


def test_folders_and_files_of_a_run(uncrashed: dict[str, bytes]) -> None:
    assert sorted(uncrashed) == [
        "00009/e/metadata.tsv",
        "00009/e/tensors.tsv",
        "00009/f/metadata.tsv",
        "00009/f/tensors.tsv",
        "events",
        "h/p/events",
        "main_a/events",
        "main_b/c/events",
        "projector_config.pbtxt",
    ]
    assert uncrashed["projector_config.pbtxt"].count(b"embeddings {") == 2


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 60),  # side effects before the kill
            st.floats(0, 1),
            st.integers(1, 5),  # points a write
            st.integers(1, 3),  # writes a commit
        ),
        max_size=8,
    ),
    st.sampled_from([1, 150, 1 << 20]),
    st.sampled_from([0, 2, 64]),
)
def test_however_often_it_is_killed_the_files_are_the_same(
    uncrashed: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    lives: list[tuple[int, float, int, int]],
    flush_bytes: int,
    max_open: int,
) -> None:
    home = MortalHome(tmp_path_factory.mktemp("logs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorboard, "_FLUSH_BYTES", flush_bytes)
        patch.setattr(tensorboard, "_GATHERED_NUMBERS", flush_bytes)
        patch.setattr(tensorboard, "_MAX_OPEN", max_open)
        patch.setattr(os, "pwrite", home.pwrite)
        patch.setattr(os, "ftruncate", home.ftruncate)
        patch.setattr(os, "replace", home.replace)
        for effects, fraction, portion, commit_every in [*lives, (1 << 30, 0.0, 3, 2)]:
            home.fate = Fate(effects, fraction)
            try:
                home.live(POINTS + BELOW, portion, commit_every)
            except Killed:
                continue
    assert tree(home.folder) == uncrashed
    assert home.state is not None
    folders: Any = {".": home.state, **dict(home.state["folders"])}  # type: ignore[call-overload]
    assert len(folders) == 4
    for folder, stored in folders.items():
        assert (home.folder / folder / stored["file"]).stat().st_size == stored["offset"]
    assert home.state["skipped"] == 2
    assert [*home.state["series"]] == ["b/c", "train/loss"]  # type: ignore[call-overload]
    assert all("hologram" in line or "series" in line for line in home.said)
    shutil.rmtree(home.log_dir)


def test_a_state_of_an_earlier_version_is_gone_on_with(home: Home) -> None:
    sink = home.open()
    sink.write([one(1)])
    home.commit(sink)
    sink.close(finished=False)
    assert home.state is not None
    assert [*home.state] == ["file", "offset", "skipped"]  # all that there was
    sink = home.open()
    sink.write([series("train/loss", "below"), one(2)])
    home.commit(sink)
    sink.close(finished=True)
    assert [step for _tag, step, _value in scalars(*home.files)] == [1]
    assert [step for _t, step, _v in scalars(*(home.folder / "below").iterdir())] == [2]


@pytest.mark.parametrize(
    "more",
    [
        {"folders": {"../x": {"file": f"events.out.tfevents.{NOW}.a", "offset": 0}}},
        {"folders": {"": {"file": f"events.out.tfevents.{NOW}.a", "offset": 0}}},
        {"folders": {"x": {"file": "../victim", "offset": 0}, "y": 5}},
        {"folders": {"/": {"file": f"events.out.tfevents.{NOW}.a", "offset": 0}}},
        {"folders": 5, "series": [1]},
        {"series": {"a": [".", "a", ""], "b": ["/".join("x" * 9), "b", ""]}},
        {"series": {"a": 5, "b": ["x"], 5: ["", "a", ""], "c": ["../../..", "c", ""]}},
    ],
)
def test_folders_that_it_never_stored_are_not_made(home: Home, more: dict[str, Any]) -> None:
    home.open().close(finished=False)
    before = sorted(home.log_dir.parent.rglob("*"))
    assert home.state is not None
    home.state = {**home.state, **more}
    sink = home.open()
    assert sorted(home.log_dir.parent.rglob("*")) == before
    sink.write([block(["a", "b", "c"], [1], [[1, 2, 3]])])
    home.commit(sink)
    sink.close(finished=True)
    assert all(p.is_relative_to(home.folder) for p in home.log_dir.parent.rglob("events.*"))
    assert not list(home.log_dir.parent.rglob("victim"))


def test_there_are_not_too_many_folders(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "_MAX_FOLDERS", 70)  # more than are open at once
    sink = home.open()
    tags = [f"t{i}" for i in range(72)]
    sink.write([series(tag, f"folder {tag}", "t") for tag in tags])
    for step in range(3):
        sink.write([block(tags, [step], [range(72)])])
        home.commit(sink)
        assert len(os.listdir("/proc/self/fd")) < 60
    sink.close(finished=True)
    assert len([path for path in home.folder.iterdir() if path.is_dir()]) == 70
    (path,) = (home.folder / "folder t69").iterdir()
    assert scalars(path) == [("t", step, 69) for step in range(3)]
    assert home.state is not None
    assert home.state["skipped"] == 2 * 3
    assert len(home.said) == 1
    assert "over 70 folders" in home.said[0]


def test_a_folder_that_is_lost_is_begun_anew_alone(home: Home) -> None:
    sink = home.open()
    sink.write([series("a", "below"), block(["a", "b"], [1], [[1, 1]])])
    home.commit(sink)
    shutil.rmtree(home.folder / "below")
    sink.write([block(["a", "b"], [2], [[2, 2]])])
    sink.commit()  # and the worker dies, with the new file's name stored
    sink.close(finished=False)
    sink = home.open()
    sink.write([block(["a", "b"], [2], [[2, 2]])])
    home.commit(sink)
    shutil.rmtree(home.folder / "below")
    sink.close(finished=False)
    sink = home.open()
    assert not (home.folder / "below").exists()  # nothing to write
    sink.write([block(["a", "b"], [3], [[3, 3]])])
    home.commit(sink)
    sink.close(finished=True)
    assert scalars(*home.files) == [("b", 1, 1), ("b", 2, 2), ("b", 3, 3)]
    assert scalars(*(home.folder / "below").iterdir()) == [("a", 3, 3)]


def test_no_link_leads_a_folder_elsewhere(home: Home, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    sink = home.open()
    (home.folder / "below").symlink_to(elsewhere)
    sink.write([series("a", "below/deeper"), block(["a"], [1], [[1]])])
    with pytest.raises(OSError, match="symbolic link"):
        sink.commit()
    sink.close(finished=False)
    assert list(elsewhere.iterdir()) == []


def test_every_torn_tail_is_cut(home: Home) -> None:
    sink = home.open()
    sink.write([one(1)])
    home.commit(sink)
    (path,) = home.files
    committed = path.read_bytes()
    sink.write([one(2), text("t", 2, "words")])
    sink.commit()  # but the cursor is never stored
    sink.close(finished=False)
    whole = path.read_bytes()
    for end in range(len(committed), len(whole) + 1):
        path.write_bytes(whole[:end])
        sink = home.open()
        assert path.read_bytes() == committed
        sink.write([one(2)])
        sink.write([text("t", 2, "words")])
        sink.commit()
        sink.close(finished=False)
        assert path.read_bytes() == whole


def test_a_reader_that_is_ahead_of_the_crash_stays_right(home: Home) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    sink = home.open()
    sink.write([one(1)])
    home.commit(sink)
    sink.write([one(2)])
    sink.commit()
    (path,) = home.files
    os.truncate(path, path.stat().st_size - 3)
    reader = EventFileLoader(str(path))
    before = [event.step for event in reader.Load()]
    sink.close(finished=False)
    sink = home.open()
    sink.write([one(2), one(3)])
    home.commit(sink)
    sink.close(finished=True)
    assert before + [event.step for event in reader.Load()] == [0, 1, 2, 3]


# --- a disk that fails -------------------------------------------------------------------------


@pytest.mark.chaos
@pytest.mark.parametrize("reopened", [False, True])
def test_a_full_disk_is_an_error_and_nothing_is_lost_when_there_is_room(
    home: Home, reopened: bool
) -> None:
    points: list[Points] = [
        block(["a", "b"], range(100), [[i, -i] for i in range(100)]),
        text("t", 1, "x" * 900),
    ]
    sink = home.open()
    sink.write([one(1)])
    home.commit(sink)
    sink.write(points)
    (path,) = home.files
    before = path.read_bytes()
    for _ in range(3):
        with file_size_limit(2000), pytest.raises(OSError, match="File too large"):
            sink.commit()
        assert path.read_bytes() == before
        if reopened:
            sink.close(finished=False)
            home.open(sink)
            sink.write(points)
    home.commit(sink)
    sink.close(finished=True)
    assert scalars(path) == scalars_of([one(1), *points])
    assert len(events(path)) == 1 + 1 + 100 + 1


@pytest.mark.chaos
def test_a_disk_that_is_full_from_the_start(home: Home) -> None:
    sink = TensorBoardSink()
    for _ in range(2):
        with file_size_limit(10), pytest.raises(OSError, match="File too large"):
            home.open(sink)
    sink = home.open(sink)
    sink.write([one(1)])
    home.commit(sink)
    sink.close(finished=True)
    (path,) = home.files
    assert [event.step for event in events(path)] == [0, 1]


def test_a_place_that_is_no_folder_is_an_error_until_it_is_one(home: Home) -> None:
    home.log_dir.write_bytes(b"")
    sink = TensorBoardSink()
    with pytest.raises(OSError, match="exists"):
        home.open(sink)
    assert home.state is None
    home.log_dir.unlink()
    home.open(sink)
    assert len(home.files) == 1
    sink.close(finished=True)


@pytest.mark.parametrize("link", ["tensorboard", "tensorboard/run"])
def test_no_link_leads_it_elsewhere(home: Home, tmp_path: Path, link: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (home.log_dir / link).parent.mkdir(parents=True)
    (home.log_dir / link).symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic link"):
        home.open()
    assert list(elsewhere.iterdir()) == []


def test_a_link_in_the_files_place_is_not_written_through(home: Home, tmp_path: Path) -> None:
    sink = home.open()
    sink.write([one(1)])
    home.commit(sink)
    sink.close(finished=False)
    (path,) = home.files
    victim = tmp_path / "victim"
    path.rename(victim)
    path.symlink_to(victim)
    before = victim.read_bytes() + b"more"
    victim.write_bytes(before)
    with pytest.raises(OSError, match="symbolic link"):
        home.open()
    assert victim.read_bytes() == before


@pytest.mark.parametrize("run_dir", ["..", ".", "", "a/b"])
def test_a_run_directory_is_one_name(home: Home, run_dir: str) -> None:
    home.run_dir = run_dir
    with pytest.raises(OSError, match="not the name of one folder"):
        home.open()
    assert not [path for path in home.log_dir.rglob("*") if path.is_file()]


# --- a file that is lost while it is written ---------------------------------------------------


def _delete_file(home: Home) -> None:
    home.files[0].unlink()


def _delete_run(home: Home) -> None:
    shutil.rmtree(home.folder)


def _delete_all(home: Home) -> None:
    shutil.rmtree(home.log_dir)


def _move_run(home: Home) -> None:
    home.folder.rename(home.log_dir / "kept by the user")


def _replace_file(home: Home) -> None:
    (path,) = home.files
    path.rename(home.log_dir / "kept by the user")
    path.write_bytes(b"")


def _cut_file(home: Home) -> None:
    os.truncate(home.files[0], 10)


LOSSES = [_delete_file, _delete_run, _delete_all, _move_run, _replace_file, _cut_file]


@pytest.mark.chaos
@pytest.mark.parametrize("lose", LOSSES)
@pytest.mark.parametrize("reopened", [False, True])
def test_what_comes_after_a_loss_goes_into_a_new_file(
    home: Home, lose: Callable[[Home], None], reopened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_log, "_FILE_NUMBERS", itertools.count(99))  # "100" is less
    sink = home.open()
    sink.write([one(1)])
    home.commit(sink)
    (old,) = home.files
    lose(home)
    if reopened:
        sink.close(finished=False)
        sink = home.open()
    sink.write([one(2)])
    home.commit(sink)
    sink.write([one(3)])
    home.commit(sink)
    sink.close(finished=True)

    new = home.files[-1]
    assert new.name > old.name  # or TensorBoard would not turn to it
    assert [event.step for event in events(new)] == [0, 2, 3]
    assert home.state == {"file": new.name, "offset": new.stat().st_size, "skipped": 0}
    assert len(home.said) == 1
    assert old.name in home.said[0]

    sink = home.open()  # and the new file is gone on with
    sink.write([one(4)])
    home.commit(sink)
    sink.close(finished=True)
    assert home.files[-1] == new
    assert events(new)[-1].step == 4


@pytest.mark.chaos
@pytest.mark.parametrize("lose", [_delete_file, _delete_run, _delete_all])
def test_what_was_deleted_does_not_come_back_until_there_is_something_to_write(
    home: Home, lose: Callable[[Home], None]
) -> None:
    sink = home.open()
    sink.write([one(1)])
    home.commit(sink)
    state = home.state
    lose(home)
    left = sorted(home.log_dir.rglob("*"))
    home.commit(sink)
    sink.close(finished=False)
    sink = home.open()
    home.commit(sink)
    assert sorted(home.log_dir.rglob("*")) == left
    assert home.state == state
    sink.write([one(2)])
    home.commit(sink)
    sink.close(finished=True)
    assert [step for _tag, step, _value in scalars(*home.files)] == [2]


@pytest.mark.chaos
def test_a_crash_right_after_a_new_file_was_begun(home: Home) -> None:
    sink = home.open()
    sink.write([one(1)])
    home.commit(sink)
    _delete_run(home)
    sink.write([one(2)])
    sink.commit()  # the new file's name is stored, this commit is not
    sink.close(finished=False)
    sink = home.open()
    sink.write([one(2)])
    home.commit(sink)
    sink.close(finished=True)
    assert [step for _tag, step, _value in scalars(*home.files)] == [2]


def test_the_name_comes_after_those_of_files_that_are_there(home: Home) -> None:
    home.folder.mkdir(parents=True)
    later = home.folder / f"events.out.tfevents.{NOW + 3600}.elsewhere.1.0"
    later.write_bytes(b"")
    (home.folder / "events.out.tfevents.not-a-time").write_bytes(b"")
    home.open().close(finished=True)
    names = [path.name for path in home.files if path.name[20].isdigit()]
    assert len(names) == 2
    assert names[0] == later.name
    assert names[1].startswith(f"events.out.tfevents.{NOW + 3601}.")


@pytest.mark.parametrize(
    "state",
    [
        {"file": "../../victim", "offset": 3},
        {"file": "events.out.tfevents.1700000000/../../../victim", "offset": 3},
        {"file": 5, "offset": "x"},
        {"file": f"events.out.tfevents.{NOW}.a", "offset": -3},
        {"file": f"events.out.tfevents.{NOW}.a", "offset": 1 << 64},
        {"something": "else"},
    ],
)
def test_a_state_of_somebody_else_is_not_followed(home: Home, state: SinkState) -> None:
    home.log_dir.mkdir()
    (home.log_dir / "victim").write_bytes(b"precious")
    home.state = state
    home.open().close(finished=True)
    assert (home.log_dir / "victim").read_bytes() == b"precious"
    assert len(home.files) == 1
    assert len(home.said) == 1


def test_it_must_be_open_to_be_written(home: Home) -> None:
    sink = TensorBoardSink()
    sink.close(finished=False)
    with pytest.raises(RuntimeError, match="not open"):
        sink.write([one(1)])
    with pytest.raises(RuntimeError, match="not open"):
        sink.commit()

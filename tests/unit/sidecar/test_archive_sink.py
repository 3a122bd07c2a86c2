"""The archive sink: float64 to the bit, exactly once through every crash."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sidestep.proto import Value
from sidestep.sidecar.rows.points import MixedBlock, Points, ScalarBlock
from sidestep.sidecar.sinks import archive
from sidestep.sidecar.sinks.archive import ArchiveSink
from sidestep.sidecar.sinks.base import SinkState
from tests.support.archive import Home, by_tag, exact
from tests.support.event_reader import block
from tests.support.full_disk import file_size_limit


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "logs")


def one(step: int, value: float = 0.5, tag: str = "train/loss") -> Points:
    return block([tag], [step], [[value]])


INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
FLOATS = st.floats(width=64) | st.sampled_from(
    [math.nan, -math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 0.1]
)


@st.composite
def blocks(draw: st.DrawFn) -> ScalarBlock:
    tags = draw(st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True))
    rows = draw(st.integers(1, 6))
    column = st.lists(INT64, min_size=rows, max_size=rows)
    size = rows * len(tags)
    values = draw(st.lists(FLOATS, min_size=size, max_size=size))
    table = np.array(values, np.float64).reshape(rows, len(tags))
    return block(tags, draw(column), table, draw(column))


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.lists(blocks(), max_size=4), max_size=5))
def test_every_number_comes_back_to_the_bit(tmp_path: Path, lives: list[list[ScalarBlock]]) -> None:
    home = Home(tmp_path / "logs")
    for life in lives:
        home.write(*life)
    if lives:
        written = exact(part for life in lives for part in life)
        assert by_tag(home.read()) == by_tag(written)
        assert len(home.files) == 1
    shutil.rmtree(home.log_dir, ignore_errors=True)


def test_a_nans_payload_is_kept(home: Home) -> None:
    bits = np.array([[0x7FF8DEADBEEF0001], [0xFFF0000000000001]], np.uint64)
    home.write(block(["a"], [1, 2], bits.view(np.float64)))
    (found,) = home.archive().blocks()
    assert found.values.view(np.uint64).tolist() == bits.tolist()


def test_what_is_long_is_cut_into_blocks_that_bound_a_readers_memory(home: Home) -> None:
    values = np.random.default_rng(3).standard_normal((300_000, 3))
    whole = block(["a", "b", "c"], range(300_000), values, range(300_000))
    home.write(whole)
    found = list(home.archive().blocks())
    assert max(part.values.nbytes for part in found) <= 2 << 20
    assert np.array_equal(np.concatenate([part.values for part in found]), values)
    assert np.array_equal(np.concatenate([part.steps for part in found]), whole.steps)


def test_a_record_of_as_many_tags_as_there_can_be(home: Home) -> None:
    tags = [f"{i:04d}/" + "ä" * 30 for i in range(4096)]
    home.write(block(tags, [1], [np.arange(4096.0)]))
    (found,) = home.archive().blocks()
    assert (found.tags, found.values.tolist()) == (tuple(tags), [list(map(float, range(4096)))])


def test_rows_of_many_tag_sets_in_turn_come_back(home: Home) -> None:
    tag_sets = [tuple(f"{n}/{k}" for k in range(1 + n % 3)) for n in range(40)]
    which = np.arange(100) % 40
    count = sum(len(tag_sets[n]) for n in which)
    mixed = MixedBlock(
        tuple(tag_sets), which, np.arange(100), np.arange(100) * 7, np.arange(count) / 3
    )
    known = block(["1/0", "1/1"], [500], [[1.0, 2.0]])  # one of their tag sets
    home.write(known, mixed, known)
    home.write(mixed, block(["other"], [1], [[0.5]]), mixed)
    expected = exact([known, *mixed.alone(), known, *mixed.alone(), *mixed.alone()])
    assert by_tag(p for p in home.read() if p[0] != "other") == by_tag(expected)


def test_values_that_are_no_numbers_are_not_its_own(home: Home) -> None:
    home.write(one(1), Value("text", "notes", 2, 3, {"text": "words"}), one(2))
    assert [point[1] for point in home.read()] == [1, 2]


def test_the_name_is_stored_before_the_file_exists(home: Home) -> None:
    seen: list[list[Path]] = []

    class Watching(Home):
        def save(self, state: SinkState) -> None:
            seen.append(self.files)
            super().save(state)

    watching = Watching(home.log_dir)
    watching.open().close(finished=True)
    (path,) = watching.files
    assert seen == [[]]
    assert watching.state == {"file": path.name, "offset": 0, "tags": 0}


def test_it_must_be_open_to_be_written(home: Home) -> None:
    sink = home.open()
    sink.close(finished=True)
    sink = ArchiveSink()
    sink.write([one(1)])
    with pytest.raises(RuntimeError, match="open"):
        sink.commit()


def test_it_loads_little(tmp_path: Path) -> None:
    program = """if True:
        import sys
        import sidestep.sidecar.worker as worker
        worker.open_sink("archive")
        heavy = {"torch", "tensorboard", "google.protobuf", "PIL", "zmq", "typer", "pydantic"}
        print(*heavy & set(sys.modules))
    """
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.split() == []


# --- crashes -----------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is no more."""


_pwrite, _ftruncate = os.pwrite, os.ftruncate


@dataclass
class MortalHome(Home):
    """A home whose every access to the disk may be the last, and may come through in part."""

    effects: int = 1 << 30
    fraction: float = 0.0

    def _strikes(self) -> bool:
        self.effects -= 1
        return self.effects < 0

    def save(self, state: SinkState) -> None:
        self._store(state, self.cursor)

    def _store(self, state: SinkState, cursor: int) -> None:
        if self._strikes():
            if self.fraction > 0.5:
                self.state, self.cursor = dict(state), cursor
            raise Killed
        self.state, self.cursor = dict(state), cursor

    def pwrite(self, fd: int, data: memoryview, offset: int) -> int:
        if self._strikes():
            _pwrite(fd, data[: int(len(data) * self.fraction)], offset)
            raise Killed
        return _pwrite(fd, data, offset)

    def ftruncate(self, fd: int, length: int) -> None:
        if self._strikes():
            raise Killed
        _ftruncate(fd, length)

    def live(self, points: Sequence[Points], portion: int, commit_every: int) -> None:
        """Write what comes after the cursor; after a commit, store cursor and state at once."""
        sink = ArchiveSink()
        try:
            self.open(sink)
            cursor = self.cursor
            while self.cursor < len(points):
                for _ in range(commit_every):
                    sink.write(points[cursor : cursor + portion])
                    cursor = min(cursor + portion, len(points))
                self._store(sink.commit(), cursor)
        finally:
            sink.close(finished=False)  # does nothing but close: a kill does as much


POINTS: list[Points] = [
    one(0),
    block(["a", "b/c"], range(120, 140), [[i, i / 3] for i in range(20)]),
    block(["a"], [5, -5, 1 << 40], [[1], [float("nan")], [1e-310]]),
    *[one(step) for step in range(6)],
    block([f"t{i}" for i in range(30)], [1], [range(30)]),
    one(8, tag="ü"),
    one(7),
]


@pytest.fixture(scope="module")
def uncrashed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    home = MortalHome(tmp_path_factory.mktemp("uncrashed"))
    home.live(POINTS, portion=len(POINTS), commit_every=1)
    return home.files[0].read_bytes()


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 25),  # effects on the disk before the kill
            st.floats(0, 1),
            st.integers(1, 5),  # points a write
            st.integers(1, 3),  # writes a commit
        ),
        max_size=8,
    ),
    st.sampled_from([1, 150, 1 << 20]),
)
def test_however_often_it_is_killed_the_file_is_the_same(
    uncrashed: bytes,
    tmp_path_factory: pytest.TempPathFactory,
    lives: list[tuple[int, float, int, int]],
    flush_bytes: int,
) -> None:
    home = MortalHome(tmp_path_factory.mktemp("logs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "_FLUSH_BYTES", flush_bytes)
        patch.setattr(os, "pwrite", home.pwrite)
        patch.setattr(os, "ftruncate", home.ftruncate)
        for effects, fraction, portion, commit_every in [*lives, (1 << 30, 0.0, 3, 2)]:
            home.effects, home.fraction = effects, fraction
            try:
                home.live(POINTS, portion, commit_every)
            except Killed:
                continue
    (path,) = home.files
    assert path.read_bytes() == uncrashed
    assert home.said == []
    assert by_tag(home.read()) == by_tag(exact(POINTS))
    shutil.rmtree(home.log_dir)


def test_every_torn_tail_is_cut_and_becomes_the_same_again(home: Home) -> None:
    sink = home.open()
    sink.write([one(1), one(2, tag="other")])
    home.commit(sink)
    (path,) = home.files
    committed = path.read_bytes()
    rest = [one(3), one(4, tag="new"), one(5, tag="other"), one(6, tag="new")]
    sink.write(rest)
    sink.commit()  # but the cursor is never stored
    sink.close(finished=False)
    whole = path.read_bytes()
    for end in range(len(committed), len(whole) + 1):
        os.truncate(path, end)
        sink = home.open()
        assert path.read_bytes() == committed
        for point in rest:
            sink.write([point])
        sink.commit()
        sink.close(finished=False)
        assert path.read_bytes() == whole


# --- files that are not what they were ---------------------------------------------------------


def _delete(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _replace(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.with_suffix(".other").write_bytes(b"keeps the inode's number in use")
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [_delete, _cut, _replace])
@pytest.mark.parametrize("reopened", [False, True])
def test_a_lost_file_is_noticed_and_a_new_one_begun(home: Home, harm: Any, reopened: bool) -> None:
    sink = home.open()
    sink.write([one(1), one(2, tag="b")])
    home.commit(sink)
    (first,) = home.files
    if reopened:
        sink.close(finished=False)
    harm(first)
    if reopened:
        home.open(sink)
    sink.write([one(3, tag="b"), one(4)])  # both tag sets must be defined anew
    home.commit(sink)
    sink.close(finished=True)
    if reopened and harm is _replace:
        return  # nobody can tell
    assert home.state is not None
    assert home.state["file"] != first.name
    assert home.state["file"].startswith("scalars.000002.")  # type: ignore[attr-defined]
    assert any(first.name in line and "new file" in line for line in home.said)
    found = [point[1] for point in exact(home.archive().blocks())]
    assert found[-2:] == [3, 4]


def test_a_folder_that_was_deleted_is_not_made_again_for_nothing(home: Home) -> None:
    home.write(one(1))
    shutil.rmtree(home.log_dir)
    home.open().close(finished=True)
    assert not home.log_dir.exists()
    home.write(one(2))
    assert [point[1] for point in home.read()] == [2]


def test_definitions_that_were_damaged_are_not_built_upon(home: Home) -> None:
    home.write(one(1))
    (path,) = home.files
    data = bytearray(path.read_bytes())
    data[data.index(b"train/loss")] ^= 1
    path.write_bytes(data)
    home.write(one(2))
    run = home.archive()
    assert [point[1] for point in exact(run.blocks())] == [2]
    assert [damage.path for damage in run.damage] == [path]


@pytest.mark.parametrize(
    ("name", "offset", "tags"),
    [
        ("../../etc/passwd", 3, 0),
        ("scalars.000001.host.1", -1, 0),
        ("scalars.000001.host.1", 1 << 64, 0),
        ("scalars.000001.host.1", 100, 1 << 64),
        ("scalars.000001.host.1", 100, -5),
        ("scalars.000001.host.1", "100", 0),
    ],
)
def test_a_state_of_another_kind_is_said_and_a_file_begun(
    home: Home, name: str, offset: object, tags: object
) -> None:
    home.state = {"file": name, "offset": offset, "tags": tags}
    home.write(one(1))
    assert "never stored" in home.said[0]
    assert len(home.files) == 1


def test_a_full_disk_is_an_error_and_nothing_is_lost_when_there_is_room(home: Home) -> None:
    points = [block(["a", "b"], range(300), [[i, -i] for i in range(300)]), one(3, tag="c")]
    sink = home.open()
    sink.write([one(1)])
    home.commit(sink)
    sink.write(points)
    before = home.files[0].read_bytes()
    for _ in range(3):
        with file_size_limit(2000), pytest.raises(OSError, match="File too large"):
            sink.commit()
        assert home.files[0].read_bytes() == before
    home.commit(sink)
    sink.close(finished=True)
    assert by_tag(home.read()) == by_tag(exact([one(1), *points]))


@pytest.mark.parametrize("link", ["scalars", "scalars/a_run"])
def test_no_link_leads_it_elsewhere(home: Home, tmp_path: Path, link: str) -> None:
    home.run = "a_run"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (home.log_dir / link).parent.mkdir(parents=True)
    (home.log_dir / link).symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic link"):
        home.open()
    assert list(elsewhere.iterdir()) == []

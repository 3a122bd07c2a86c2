"""Reading an archive: everything up to where it is damaged, never a number that was not there."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from sidestep.proto.naming import safe_name
from sidestep.sidecar.archive import blocks as reader_blocks, frames as reader_frames
from sidestep.sidecar.archive.reader import Run, find_run, runs
from sidestep.sidecar.rows.points import Points
from sidestep.sidecar.sinks import archive_format as form
from sidestep.sidecar.sinks.event_file import record
from tests.support.archive import Home, by_tag, exact
from tests.support.event_reader import block


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "logs")


def one(step: int, tag: str = "a") -> Points:
    return block([tag], [step], [[step / 3]])


def two_files(home: Home, first: Sequence[Points], second: Sequence[Points]) -> list[Path]:
    """The first file is not the writer's any more when the second is begun."""
    home.write(*first)
    home.state = None
    home.write(*second)
    assert len(home.files) == 2
    return home.files


# --- damage ------------------------------------------------------------------------------------

FIRST = [block(["a", "b"], [1, 2], [[0.1, 0.2], [0.3, float("nan")]]), one(3), one(4), one(5, "c")]
SECOND = [one(6), one(7)]


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << at % 8]))


def test_a_torn_tail_ends_a_file_and_no_other(home: Home) -> None:
    path, _ = two_files(home, FIRST, SECOND)
    whole, everything = path.read_bytes(), exact(FIRST)
    after = exact(SECOND)
    for end in reversed(range(len(whole))):
        os.truncate(path, end)
        run = home.archive()
        found = exact(run.blocks())
        assert found[-2:] == after
        assert found[:-2] == everything[: len(found) - 2]
        kept = run.damage[0].offset if run.damage else end
        if end - kept:
            assert [damage.path for damage in run.damage] == [path]
            assert run.damage[0].lost_bytes == end - kept
            assert "torn" in str(run.damage[0])
        else:
            assert run.damage == []


def test_a_flipped_bit_is_never_a_number(home: Home) -> None:
    path, _ = two_files(home, FIRST, SECOND)
    whole, everything = path.read_bytes(), exact(FIRST)
    seen: set[int] = set()
    for at in range(len(whole)):
        flip(path, at)
        run = home.archive()
        found = exact(run.blocks())
        assert found[-2:] == exact(SECOND)
        assert found[:-2] == everything[: len(found) - 2]
        (damage,) = run.damage
        assert damage.path == path
        assert damage.offset <= at < damage.offset + damage.lost_bytes == len(whole)
        seen.add(len(found))
        flip(path, at)
    assert len(seen) == len(FIRST)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"x" * 40], "does not begin"),
        ([form.BODY_HEAD.pack(form.FILE, 2, 0, 0)], "version 2"),
        ([b"short"], "5 bytes"),
        (["file", form.BODY_HEAD.pack(form.BLOCK, 0, 1, 1) + bytes(24)], "not defined"),
        (["file", "tags", form.BODY_HEAD.pack(form.BLOCK, 0, 2, 1) + bytes(24)], "2 rows"),
        (["file", "tags", form.BODY_HEAD.pack(form.BLOCK, 0, 0, 1)], "0 rows"),
        (["file", "tags", "tags"], "defined as number 1"),
        (["file", b"short"], "a frame of 5 bytes"),
        (["file", form.BODY_HEAD.pack(form.TAGS, 0, 0, 1) + bytes(8) + b"\xc1"], "MessagePack"),
        (["file", form.BODY_HEAD.pack(form.TAGS, 0, 0, 1) + bytes(8) + b"\x91\x05"], "else"),
        (["file", form.BODY_HEAD.pack(form.TAGS, 0, 0, 2) + bytes(8) + b"\x91\xa1a"], "list of 2"),
    ],
)
def test_what_is_whole_and_not_understood_is_damage(
    home: Home, frames: Sequence[bytes | str], reason: str
) -> None:
    home.write(one(1))
    known = {"file": form.file_frame(home.run), "tags": form.tags_frame(0, ["a"], 0)}
    parts = [known[part] if isinstance(part, str) else record(part) for part in frames]
    (path,) = home.files
    path.write_bytes(b"".join(parts) + record(b"more" * 8))
    run = home.archive()
    assert list(run.blocks()) == []
    (damage,) = run.damage
    assert reason in str(damage)
    assert damage.offset == sum(map(len, parts[:-1]))
    assert damage.offset + damage.lost_bytes == path.stat().st_size


def test_a_kind_of_frame_to_come_is_skipped(home: Home) -> None:
    home.write(one(1))
    (path,) = home.files
    path.write_bytes(path.read_bytes() + record(form.BODY_HEAD.pack(77, 0, 0, 0) + b"?" * 5))
    assert home.read() == exact([one(1)])


def test_an_absurd_length_allocates_nothing(home: Home) -> None:
    home.write(one(1))
    (path,) = home.files
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + record(b"")[:0] + (1 << 60).to_bytes(8, "little") * 3)
    run = home.archive()
    assert exact(run.blocks()) == exact([one(1)])
    assert (run.damage[0].offset, run.damage[0].lost_bytes) == (size, 24)


def test_what_is_emitted_after_the_call_is_left_out_without_a_word(home: Home) -> None:
    sink = home.open()
    sink.write([one(1)])
    home.commit(sink)
    (path,) = home.files
    whole = path.read_bytes()
    sink.write([one(2)])
    home.commit(sink)
    grown = path.read_bytes()
    sink.close(finished=True)
    path.write_bytes(whole + grown[len(whole) :][:11])  # the writer is in the middle of a frame
    run = home.archive()
    blocks = run.blocks()
    first = next(blocks)
    path.write_bytes(grown)
    assert exact([first, *blocks]) == exact([one(1)])
    assert run.damage == []


def test_links_and_other_things_are_not_read(home: Home, tmp_path: Path) -> None:
    home.write(one(1))
    (path,) = home.files
    os.symlink(path, home.folder / "scalars.000002.link.1")
    os.mkfifo(home.folder / "scalars.000003.fifo.1")
    (home.folder / "notes.txt").write_text("not ours")
    run = home.archive()
    assert exact(run.blocks()) == exact([one(1)])
    assert [damage.path.name[:14] for damage in run.damage] == ["scalars.000002", "scalars.000003"]
    (tmp_path / "elsewhere").symlink_to(home.folder)
    (home.log_dir / "scalars" / "linked").symlink_to(home.folder)
    assert find_run(home.log_dir, "linked") is None
    assert [one.name for one in runs(home.log_dir)] == [home.run]


# --- order, selection, names -------------------------------------------------------------------


@pytest.mark.parametrize("piece_bytes", [1, 300, 1 << 20])
def test_the_points_of_a_tag_keep_their_order(
    home: Home, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(reader_frames, "_PIECE_BYTES", piece_bytes)
    sets = [["a", "b"], ["c"], ["b", "d"], ["e"]]
    choose = np.random.default_rng(5)
    points: list[Points] = []
    for step in range(200):
        tags = sets[choose.integers(4)]
        rows = int(choose.integers(1, 4))
        points.append(block(tags, [step] * rows, choose.standard_normal((rows, len(tags)))))
    home.write(*points)
    assert by_tag(home.read()) == by_tag(exact(points))


def test_small_blocks_are_put_together(home: Home) -> None:
    home.write(*(one(step, tag) for step in range(5000) for tag in ("a", "b")))
    blocks = list(home.archive().blocks())
    assert len(blocks) == 2 * -(-10_000 * 56 // (1 << 20))


def calls_of(work: Callable[[], object]) -> int:
    """How many functions `work` calls, those in C among them."""
    calls = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def test_thousands_of_tag_sets_in_turn_are_no_more_work_than_a_few(tmp_path: Path) -> None:
    calls: list[int] = []
    for count in (100, 1000):
        home = Home(tmp_path / str(count))
        home.write(*(one(step, f"m{step % count}") for step in range(10_000)))
        calls.append(calls_of(lambda home=home: sum(1 for _ in home.archive().blocks())))
        blocks = list(home.archive().blocks())
        assert len(blocks) == count  # as large as they can be
        assert sum(len(found.steps) for found in blocks) == 10_000
    assert calls[1] < 2 * calls[0]


def test_many_tag_sets_do_not_fill_the_memory(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_blocks, "_HELD_BYTES", 4000)
    monkeypatch.setattr(reader_frames, "_PIECE_BYTES", 1000)
    points = [one(step, f"m{step % 100}") for step in range(2000)]
    home.write(*points)
    blocks = list(home.archive().blocks())
    assert by_tag(exact(blocks)) == by_tag(exact(points))
    # 40 bytes a body; a piece more than the limit at most.
    for first in range(0, len(blocks), 100):
        assert sum(len(found.steps) for found in blocks[first : first + 100]) <= 5000 // 40


def test_selection_by_tag_and_step(home: Home) -> None:
    points = [
        block(["train/loss", "train/Lr", "val/loss"], range(10), np.arange(30).reshape(10, 3)),
        one(4, "val/acc"),
        one(-7, "x"),
    ]
    home.write(*points)
    run, everything = home.archive(), exact(points)

    def chosen(tags: Sequence[str] = (), first: int | None = None, last: int | None = None) -> int:
        found = list(run.blocks(tags, first, last))
        assert all(len(part.steps) and part.values.shape[1] == len(part.tags) for part in found)
        wanted = [
            point
            for point in everything
            if (not tags or any(Path(point[0]).match(glob) for glob in tags))
            and (first is None or point[1] >= first)
            and (last is None or point[1] <= last)
        ]
        assert by_tag(exact(found)) == by_tag(wanted)
        return len(wanted)

    assert chosen() == 32
    assert chosen(["val/*"]) == 11
    assert chosen(["train/l*"]) == 10
    assert chosen(["train/*", "x"]) == 21
    assert chosen(["none"]) == 0
    assert chosen((), 4) == 19
    assert chosen((), None, 3) == 13
    assert chosen(["val/*"], 4, 4) == 2
    assert chosen((), 11, 20) == 0


def test_points_one_by_one(home: Home) -> None:
    home.write(block(["a", "b"], [3], [[1.5, 2.5]], [1_700_000_000_250_000_000]))
    assert list(home.archive().points()) == [
        ("a", 3, 1_700_000_000.25, 1.5),
        ("b", 3, 1_700_000_000.25, 2.5),
    ]
    assert list(home.archive().points(["b"], last_step=2)) == []


def test_files_are_read_in_the_order_of_their_numbers(home: Home) -> None:
    home.write(one(1))
    (path,) = home.files
    for number in (9, 10, 999_999, 1_000_000):
        shutil.copy(path, home.folder / form.file_name(number, "host/with/slashes", 1))
    copies = exact([one(1)]) * 5
    assert home.read() == copies
    home.state = None
    home.write(one(2))
    assert home.read() == [*copies, *exact([one(2)])]
    assert form.number_of(home.files[-1].name) in (1_000_001, 999_999)
    assert (home.folder / home.state["file"]).name.startswith("scalars.1000001.")  # type: ignore[index]


def test_runs_are_found_by_their_own_names(tmp_path: Path) -> None:
    names = ["plain", "a/b", "../up", "ü" * 100, "sp ace", "x\n"]
    assert runs(tmp_path / "nowhere") == []
    for name in names:
        Home(tmp_path, name).write(one(1))
    (tmp_path / "scalars" / ".hidden").mkdir()
    (tmp_path / "scalars" / "file").write_bytes(b"")
    assert [run.name for run in runs(tmp_path)] == sorted(names)
    for name in names:
        run = find_run(tmp_path, name)
        assert run is not None
        assert exact(run.blocks()) == exact([one(1)])
    assert find_run(tmp_path, "a_b") is None
    assert find_run(tmp_path / "nowhere", "plain") is None


def test_a_run_whose_file_is_damaged_is_still_a_run(home: Home) -> None:
    home.run = "plain"
    home.write(one(1))
    home.files[0].write_bytes(b"")
    assert runs(home.log_dir) == [Run("plain", home.log_dir)]
    assert home.read() == []
    shutil.rmtree(home.folder)
    assert find_run(home.log_dir, "plain") is None
    with pytest.raises(FileNotFoundError):
        list(Run("plain", home.log_dir).blocks())
    assert safe_name("plain") == "plain"

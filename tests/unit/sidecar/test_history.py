"""What `tail` is told of the past: the newest points of each tag, or all after a row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sidestep.proto import RunSpec
from sidestep.proto.records import Scalars, encode_scalars
from sidestep.sidecar.journal.reader import JournalReader
from sidestep.sidecar.journal.writer import ClientRow, Journal
from sidestep.sidecar.live import history as history_module
from sidestep.sidecar.live.history import history


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[JournalReader]:
    """Two runs; each of 20 rows holds 5 steps of two tags, the runs taking turns."""
    path = str(tmp_path / "journal.sqlite")
    journal = Journal(path)
    journal.begin()
    clients: list[tuple[int, int]] = []
    for name in ("a", "b"):
        run = journal.put_run(RunSpec(name, "/logs"))
        row = ClientRow(0, name.encode() * 16, run, 0, 0, 1, "live", 0, 0, 0, 0, None)
        client = journal.put_client(row)
        journal.put_tag_set(client, 0, ("train/loss", "val/loss"))
        clients.append((run, client))
    for i in range(20):
        run, client = clients[i % 2]
        steps = range(5 * (i // 2), 5 * (i // 2) + 5)
        rows = [encode_scalars(Scalars(0, s, 10**9 * s, (s + 0.1, -s))) for s in steps]
        journal.append(run, client, 5, b"".join(rows))
    journal.commit()
    reader = JournalReader(path)
    yield reader
    reader.close()
    journal.close()


def _ask(reader: JournalReader, **question: object) -> tuple[int, list[tuple[object, ...]]]:
    asked = {"run": None, "globs": [], "points": 0, "after": None, "until": 20, **question}
    row, found, _ = history(reader, {1: "a", 2: "b"}, **asked)  # type: ignore[arg-type]
    return row, [(p["run"], p["tag"], p["step"], p["value"]) for p in found]


def test_no_points_wanted_is_none(reader: JournalReader) -> None:
    assert _ask(reader) == (20, [])


def test_the_newest_points_of_each_tag_oldest_first(reader: JournalReader) -> None:
    row, found = _ask(reader, run="a", points=2)
    assert row == 20
    assert sorted(found) == sorted(
        [("a", "train/loss", s, s + 0.1) for s in (48, 49)]
        + [("a", "val/loss", s, -s) for s in (48, 49)]
    )
    assert [step for _, _, step, _ in found] == [48, 48, 49, 49]


def test_globs_choose_tags(reader: JournalReader) -> None:
    _, found = _ask(reader, points=1, globs=["val/*"])
    assert found == [("a", "val/loss", 49, -49.0), ("b", "val/loss", 49, -49.0)]


def test_everything_after_a_row(reader: JournalReader) -> None:
    row, found = _ask(reader, run="b", after=18)
    assert row == 20
    assert {step for _, _, step, _ in found} == {45, 46, 47, 48, 49}
    assert _ask(reader, after=20) == (20, [])


def test_it_says_between_which_records_of_each_run_it_lies(reader: JournalReader) -> None:
    names = {1: "a", 2: "b"}
    asked = {"globs": ["val/*"], "points": 0, "until": 20}
    *_, spans = history(reader, names, run=None, after=15, **asked)  # type: ignore[arg-type]
    assert spans == {1: (40, 50), 2: (35, 50)}
    *_, spans = history(reader, names, run="b", after=19, **asked)  # type: ignore[arg-type]
    assert spans == {2: (45, 50)}
    *_, spans = history(reader, names, run="b", after=20, **asked)  # type: ignore[arg-type]
    assert spans == {}


def test_a_long_answer_is_cut_and_can_be_continued(
    reader: JournalReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "_MAX_POINTS", 30)
    found: list[tuple[object, ...]] = []
    row, answers = 0, 0
    while row < 20:
        row, more = _ask(reader, after=row)
        found += more
        answers += 1
        assert answers < 20
    assert answers > 3
    assert len(found) == len(set(found)) == 20 * 5 * 2

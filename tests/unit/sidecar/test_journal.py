"""The journal: what is committed is there, once; what was not is not; old rows leave."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from sidestep.proto import RunSpec
from sidestep.sidecar.journal import writer as journal_module
from sidestep.sidecar.journal.reader import JournalReader, rows_iterator
from sidestep.sidecar.journal.writer import ClientRow, Journal
from tests.support.full_disk import file_size_limit

SPEC = RunSpec("r", "/logs", wandb={"project": "p"}, config={"lr": 0.1}, tags=("a",))


def _client(run_id: int, uuid: bytes = b"u" * 16) -> ClientRow:
    return ClientRow(0, uuid, run_id, 0, 0, 1, "live", 0, 0, 0, 0, None)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "journal.sqlite")


def _filled(path: str, rows: int = 3, size: int = 8, **settings: int) -> tuple[Journal, int, int]:
    journal = Journal(path, **settings)
    journal.begin()
    run_id = journal.put_run(SPEC)
    client_id = journal.put_client(_client(run_id))
    for i in range(rows):
        journal.append(run_id, client_id, 2, bytes([i % 256]) * size)
    journal.commit()
    return journal, run_id, client_id


def test_rows_come_back_in_order_with_their_totals(path: str) -> None:
    journal, run_id, client_id = _filled(path)
    reader = JournalReader(path)
    rows = reader.rows(0)
    assert [(r.id, r.client_id, r.records, r.total) for r in rows] == [
        (1, client_id, 2, 2),
        (2, client_id, 2, 4),
        (3, client_id, 2, 6),
    ]
    assert [r.data[0] for r in rows] == [0, 1, 2]
    assert [r.id for r in reader.rows(1, run_id)] == [2, 3]
    assert reader.rows(0, run_id + 1) == []
    assert [r.id for r in reader.rows(0, until=2)] == [1, 2]
    assert [r.id for r in reader.rows(0, max_bytes=1)] == [1]
    assert [r.id for r in rows_iterator(reader, 0, 3)] == [1, 2, 3]
    assert reader.runs() == {run_id: SPEC}
    assert reader.run_of_client(client_id) == run_id
    journal.close()


def test_rows_with_values_are_found_by_their_kind(path: str) -> None:
    journal, run_id, client_id = _filled(path)
    journal.begin()
    row = journal.append(run_id, client_id, 1, b"12345678", {"moments", "image"})
    journal.append(run_id, client_id, 1, b"12345678", {"moment"})
    journal.commit()
    reader = JournalReader(path)
    assert [r.id for r in reader.rows(0, run_id, kinds=["moments"])] == [row]
    assert journal.newest_row_with(run_id, ["moments"]) == row
    assert journal.newest_row_with(run_id, ["text"]) == 0
    journal.close()


def test_tag_sets_are_read_anew_when_asked(path: str) -> None:
    journal, _, client_id = _filled(path)
    reader = JournalReader(path)
    assert reader.tag_sets(client_id) == {}
    journal.begin()
    journal.put_tag_set(client_id, 3, ("a", "b"))
    journal.commit()
    assert reader.tag_sets(client_id) == {}
    assert reader.tag_sets(client_id, refresh=True) == {3: ("a", "b")}
    assert journal.tag_counts(client_id) == {3: 2}
    assert journal.tag_set_ids(client_id) == {("a", "b"): 3}
    journal.close()


def test_a_rollback_takes_rows_and_totals_back(path: str) -> None:
    journal, run_id, client_id = _filled(path)
    journal.begin()
    journal.append(run_id, client_id, 5, b"x" * 8)
    journal.rollback()
    assert (journal.last_row, journal.totals[run_id]) == (3, 6)
    journal.begin()
    assert journal.append(run_id, client_id, 1, b"y" * 8) == 4
    journal.commit()
    assert JournalReader(path).rows(3)[0].total == 7
    journal.close()


def test_a_reopened_journal_goes_on_where_it_stood(path: str) -> None:
    journal, run_id, client_id = _filled(path)
    journal.begin()
    updated = _client(run_id)
    updated.durable_seq, updated.state = 9, "finished"
    assert journal.put_client(updated) == client_id
    journal.put_cursor("derive", run_id, 2)
    journal.commit()
    journal.close()
    again = Journal(path)
    assert (again.last_row, again.totals) == (3, {run_id: 6})
    assert [(c.durable_seq, c.state) for c in again.clients()] == [(9, "finished")]
    assert again.cursors("derive") == {run_id: 2}
    again.close()


def test_row_numbers_are_never_used_again(path: str) -> None:
    journal, run_id, client_id = _filled(path, rows=5, history_bytes=0)
    journal.begin()
    while journal.trim({run_id: 99}):
        pass
    journal.commit()
    journal.close()
    again = Journal(path)
    again.begin()
    assert again.append(run_id, client_id, 1, b"z" * 8) == 6
    again.commit()
    assert again.totals[run_id] == 11
    again.close()


def test_trimming_keeps_what_was_not_passed_what_is_recent_and_the_newest(path: str) -> None:
    mib = 1 << 20
    journal, run_id, _ = _filled(path, rows=10, size=mib, history_bytes=3 * mib)
    reader = JournalReader(path)
    journal.begin()
    journal.trim({run_id: 2})
    journal.commit()
    assert [r.id for r in reader.rows(0, max_bytes=1 << 30)] == list(range(3, 11))
    journal.begin()
    journal.trim({run_id: 10})
    journal.commit()
    kept = [r.id for r in reader.rows(0, max_bytes=1 << 30)]
    assert kept[-1] == 10
    assert 3 <= len(kept) <= 5
    journal.close()


def test_large_rows_leave_a_few_at_a_time(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that deletes gigabytes is one in which nobody is answered."""
    monkeypatch.setattr(journal_module, "_TRIM_BYTES", 250)
    journal = Journal(path, history_bytes=0)
    journal.begin()
    runs = [journal.put_run(RunSpec(name, "/logs")) for name in "ab"]
    for run_id in runs * 4:
        journal.append(run_id, 1, 1, bytes(100))
    passed = dict.fromkeys(runs, journal.last_row)
    journal.trim({})
    journal._floor = journal.last_row
    left: list[int] = []
    more = True
    while more:
        more = journal.trim(passed)
        left.append(journal._number("SELECT count(*) FROM batches"))
    journal.commit()
    journal.close()
    assert left == [5, 2, 2]  # three of each may go


def test_a_restarted_journal_trims_what_an_earlier_one_left(path: str) -> None:
    mib = 1 << 20
    journal, run_id, _ = _filled(path, rows=10, size=mib, history_bytes=2 * mib)
    journal.close()
    again = Journal(path, history_bytes=2 * mib)
    again.begin()
    again.trim({run_id: 10})
    again.commit()
    assert len(JournalReader(path).rows(0, max_bytes=1 << 30)) <= 4
    again.close()


@pytest.mark.parametrize("damage", [b"not a database at all" * 100, b""])
def test_a_foreign_file_is_put_aside_and_an_empty_one_used(path: str, damage: bytes) -> None:
    Path(path).write_bytes(damage)
    said: list[str] = []
    journal, *_ = _filled_with_log(path, said)
    assert journal.last_row == 1
    journal.close()
    aside = [name for name in os.listdir(os.path.dirname(path)) if ".damaged-" in name]
    assert len(aside) == len(said) == (1 if damage else 0)


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE runs SET spec = x'c1'",
        "UPDATE runs SET spec = x'80'",
        "UPDATE runs SET spec = 'text'",
        "UPDATE clients SET run_id = 77",
        "UPDATE clients SET uuid = 'text'",
        "UPDATE clients SET durable_seq = 'text'",
        "UPDATE clients SET state = x'00'",
        "UPDATE batches SET total = 'text'",
        "UPDATE sqlite_sequence SET seq = 0x7fffffffffffffff",
        "UPDATE sqlite_sequence SET seq = 0",
        "UPDATE cursors SET row = 'text'",
        "UPDATE alarm_states SET state = 'text'",
        "DELETE FROM identity",
        "DROP TABLE tag_sets",
        "ALTER TABLE clients RENAME COLUMN lost TO gone",
    ],
)
def test_what_no_daemon_has_written_is_put_aside(path: str, harm: str) -> None:
    """SQLite finds all of it in order; a daemon could not start with it, ever."""
    journal, run_id, _ = _filled(path)
    journal.begin()
    journal.put_cursor("derive", run_id, 1)
    journal.put_alarm_states(run_id, {"t": b"state"})
    journal.commit()
    journal.connection.execute(harm)
    journal.close()
    said: list[str] = []
    again, _ = _filled_with_log(path, said)
    assert again.last_row == 1
    again.close()
    assert len(said) == 1
    assert "damaged" in said[0]


def test_a_page_that_is_damaged_is_found_when_the_journal_is_opened(path: str) -> None:
    journal, *_ = _filled(path, rows=200, size=4000)
    journal.close()
    data = bytearray(Path(path).read_bytes())
    damage = bytes(range(256)) * 16
    at = len(data) // 2 & -8192
    data[at : at + len(damage)] = damage
    Path(path).write_bytes(data)
    said: list[str] = []
    _filled_with_log(path, said)[0].close()
    assert "damaged" in said[0]


def test_a_sound_journal_is_not_put_aside_after_a_kill_or_a_close(path: str) -> None:
    journal, *_ = _filled(path, rows=50, size=3000)
    shutil.copy(path, f"{path}.copy")
    shutil.copy(f"{path}-wal", f"{path}.copy-wal")
    journal.close()
    said: list[str] = []
    for one in (path, f"{path}.copy"):
        again = Journal(one, log=said.append)
        assert again.last_row == 50
        again.close()
    assert not said


def _filled_with_log(path: str, said: list[str]) -> tuple[Journal, int]:
    journal = Journal(path, log=said.append)
    journal.begin()
    run_id = journal.put_run(SPEC)
    journal.append(run_id, journal.put_client(_client(run_id)), 1, b"12345678")
    journal.commit()
    return journal, run_id


def test_a_full_disk_is_no_damage(path: str, tmp_path: Path) -> None:
    with file_size_limit(4096), pytest.raises(sqlite3.OperationalError):
        Journal(path)
    assert [*tmp_path.glob("*.damaged-*")] == []
    Journal(path).close()


_WRITER = """
import sys
sys.path[:0] = sys.argv[2].split(":")
from sidestep.proto import RunSpec
from sidestep.sidecar.journal.writer import ClientRow, Journal
journal = Journal(sys.argv[1])
journal.begin()
run = journal.put_run(RunSpec("r", "/logs"))
journal.commit()
seq = 0
while True:
    journal.begin()
    client = journal.put_client(ClientRow(0, b"u" * 16, run, 0, 0, 1, "live", 0, 0, 0, 0, None))
    for _ in range(seq % 5 + 1):
        seq += 1
        journal.append(run, client, 1, seq.to_bytes(8, "little") * 512)
    journal.put_client(ClientRow(0, b"u" * 16, run, 0, 0, 1, "live", seq, 0, 0, 0, None))
    journal.commit()
    sys.stdout.write(f"{seq}\\n")
    sys.stdout.flush()
"""


@pytest.mark.parametrize("commits", [1, 7, 40])
def test_a_killed_writer_leaves_rows_and_durable_seq_that_agree(path: str, commits: int) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, path, ":".join(sys.path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    with writer, writer.stdout:
        said = 0
        for _ in range(commits):
            said = int(writer.stdout.readline())
        writer.kill()
        writer.wait(10)
    journal = Journal(path)
    durable = journal.clients()[0].durable_seq
    rows = JournalReader(path).rows(0, max_bytes=1 << 30)
    assert durable >= said
    assert [int.from_bytes(row.data[:8], "little") for row in rows] == list(range(1, durable + 1))
    journal.close()


def test_a_journal_of_another_version_is_put_aside(path: str) -> None:
    old = sqlite3.connect(path)
    old.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY)")
    old.execute("PRAGMA user_version = 1")
    old.close()
    said: list[str] = []
    journal, _ = _filled_with_log(path, said)
    journal.close()
    assert "version 1" in said[0]
    assert JournalReader(path).identity() > 0


def test_a_journal_from_before_the_alarms_gets_a_table_for_them(path: str) -> None:
    Journal(path).close()
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE alarm_states")
    connection.close()
    journal = Journal(path)
    journal.begin()
    journal.put_alarm_states(1, {"a": b"1", "b": b"2"})
    journal.put_alarm_states(1, {"b": b"3"})
    journal.commit()
    assert journal.alarm_states(1) == {"a": b"1", "b": b"3"}
    assert journal.alarm_states(2) == {}
    journal.close()

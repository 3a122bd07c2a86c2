"""A journal that is damaged in any way is put aside and counted, or passed; no lie is shown."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sidestep.proto import RunSpec
from sidestep.sidecar.journal import check as journal_check
from sidestep.sidecar.journal.reader import JournalReader, Row
from sidestep.sidecar.journal.writer import ClientRow, Journal
from tests.support.fixtures import Connect
from tests.support.oracle import assert_exactly, points, read_scalars
from tests.support.sandbox import Sandbox
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

RUN = RunSpec("r", "/logs")
TAGS = {0: ("loss", "lr"), 1: ("acc",)}
FLIPS = 150


def make(path: Path, rows: int = 12, *, closed: bool = True) -> dict[int, Row]:
    """A journal with rows; with `closed` all of it in its database, else most in its log."""
    journal = Journal(str(path), now_ns=lambda: 1)
    journal.begin()
    run_id = journal.put_run(RUN)
    client = ClientRow(0, b"u" * 16, run_id, 0, 0, 1, "live", 0, 0, 0, 0, None)
    client_id = journal.put_client(client)
    for tag_set, tags in TAGS.items():
        journal.put_tag_set(client_id, tag_set, tags)
    journal.commit()
    for number in range(rows):
        journal.begin()
        data = bytes([number + 1]) * (40 if number % 3 else 20_000)
        journal.append(run_id, client_id, 3, data, ["image"] if number % 4 == 0 else ())
        journal.commit()
    reader = JournalReader(str(path))
    found = {row.id: row for row in reader.rows(0, max_bytes=1 << 30)}
    reader.close()
    if not closed:
        # As a SIGKILL leaves it.
        for part in ("", "-wal", "-shm"):
            shutil.copy(f"{path}{part}", f"{path}.killed{part}")
    journal.close()
    if not closed:
        for part in ("", "-wal", "-shm"):
            os.replace(f"{path}.killed{part}", f"{path}{part}")
    return found


def check(path: Path, original: dict[int, Row], *, rows_may_go: bool = False) -> bool:
    """What the journal shows is what was written; a new row is taken. Whether it was put aside.

    Args:
        path: the journal.
        original: its rows before the damage.
        rows_may_go: whether the newest may be gone without a word (they were not durable).
    """
    said: list[str] = []
    before = journal_check.count_put_aside(str(path))
    for _ in range(2):
        journal = Journal(str(path), log=said.append)
        try:
            found = read_all(path)
            journal.begin()
            run_id = journal.put_run(RUN)
            client = ClientRow(0, b"v" * 16, run_id, 0, 0, 1, "live", 0, 0, 0, 0, None)
            row = journal.append(run_id, journal.put_client(client), 1, b"new")
            while journal.trim({run_id: 0}):
                pass
            journal.commit()
            assert [r.data for r in read_all(path) if r.id == row] == [b"new"]
            break
        except sqlite3.DatabaseError as error:
            if not journal_check.is_corrupt(error):
                raise
            journal_check.condemn(str(path), str(error))  # as ingest and the workers do
        finally:
            journal.close()
    else:
        pytest.fail("the journal that is put aside is followed by one that is whole")
    aside = journal_check.count_put_aside(str(path)) - before
    assert aside <= 1
    assert bool(aside) == any("is damaged" in text for text in said)
    for one in found:
        assert one.damaged or one == original[one.id], one
    if not aside and not rows_may_go:
        assert [one.id for one in found] == list(original)
    return bool(aside)


def read_all(path: Path) -> list[Row]:
    reader = JournalReader(str(path))
    try:
        rows = reader.rows(0, max_bytes=1 << 30)
        for row in rows:
            for tag_set, tags in reader.tag_sets(row.client_id).items():
                assert TAGS[tag_set] == tags
        return rows
    finally:
        reader.close()


def flip_bits(tmp_path: Path, seed: int, flips: int, *, closed: bool) -> None:
    choose = random.Random(seed)
    source = tmp_path / "source.sqlite"
    original = make(source, closed=closed)
    part = "" if closed else "-wal"
    size = os.path.getsize(f"{source}{part}")
    aside = damaged = 0
    for number in range(flips):
        at, bit = choose.randrange(size), choose.randrange(8)
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "journal.sqlite"
        for suffix in ("", "-wal"):
            if os.path.exists(f"{source}{suffix}"):
                shutil.copy(f"{source}{suffix}", f"{path}{suffix}")
        with open(f"{path}{part}", "r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << bit]))
        try:
            was_aside = check(path, original, rows_may_go=not closed)
        except BaseException:
            print(f"seed {seed}: bit {bit} of byte {at} of journal.sqlite{part}")
            raise
        aside += was_aside
        damaged += not was_aside and any(row.damaged for row in read_all(path))
        shutil.rmtree(folder)
    print(f"{flips} bits: {aside} journals put aside, in {damaged} only rows were damaged")


def test_any_bit_flipped(tmp_path: Path) -> None:
    flip_bits(tmp_path, 1, FLIPS, closed=True)


def test_any_bit_of_the_log_flipped(tmp_path: Path) -> None:
    flip_bits(tmp_path, 2, FLIPS // 3, closed=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("closed", [True, False])
def test_very_many_bits_flipped(tmp_path: Path, closed: bool) -> None:
    flip_bits(tmp_path, 3, 10_000, closed=closed)


@pytest.mark.parametrize("part", ["", "-wal"])
def test_torn_anywhere(tmp_path: Path, part: str) -> None:
    source = tmp_path / "source.sqlite"
    original = make(source, closed=not part)
    size = os.path.getsize(f"{source}{part}")
    for at in range(0, size, max(1, size // 60)):
        path = tmp_path / str(at) / "journal.sqlite"
        path.parent.mkdir()
        for suffix in ("", "-wal"):
            if os.path.exists(f"{source}{suffix}"):
                shutil.copy(f"{source}{suffix}", f"{path}{suffix}")
        os.truncate(f"{path}{part}", at)
        check(path, original, rows_may_go=bool(part) or at == 0)


def other_program(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.commit()
    connection.close()


def other_log(path: Path) -> None:
    other = path.with_name("other.sqlite")
    make(other, 5, closed=False)
    os.replace(f"{other}-wal", f"{path}-wal")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").touch()


def folder_for_log(path: Path) -> None:
    Path(f"{path}-wal").mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], bool | None]] = {
    "empty": (lambda path: path.write_bytes(b""), False),
    "foreign text": (lambda path: path.write_bytes(b"no database " * 1000), True),
    "another program's": (other_program, True),
    "another journal's log": (other_log, None),
    "a folder": (folder, True),
    "a folder for its log": (folder_for_log, True),
    "no permissions": (lambda path: path.chmod(0), False),
    "read-only": (lambda path: path.chmod(0o400), False),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_may_lie_in_its_place(tmp_path: Path, name: str) -> None:
    damage, aside = DAMAGES[name]
    path = tmp_path / "journal.sqlite"
    original = make(path)
    damage(path)
    if aside is None:
        # SQLite takes another's log for this one's: what is there then is whole, whosever it is.
        journal = Journal(str(path), log=lambda _text: None)
        journal.close()
        return
    assert check(path, original, rows_may_go=name == "empty") is aside
    assert [*tmp_path.glob("*.damaged-*")] if aside else not [*tmp_path.glob("*.damaged-*")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
@pytest.mark.parametrize("mode", [0o600, 0o444])
def test_somebody_elses_file(mode: int) -> None:
    """A user who is not root finds a journal of root's in his directory."""
    with tempfile.TemporaryDirectory(prefix="sst", dir="/tmp") as root:
        path = Path(root) / "journal.sqlite"
        original = make(path)
        path.chmod(mode)
        os.chown(root, 65534, 65534)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                code = 0 if check(path, original) else 2
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0


def test_put_aside_again_and_again(tmp_path: Path) -> None:
    """Within one second: none takes the name of the one before it."""
    path = tmp_path / "journal.sqlite"
    for count in range(3):
        path.write_bytes(b"no database" * 100)
        assert journal_check.count_put_aside(str(path)) == count
        Journal(str(path), log=lambda _text: None).close()
    assert journal_check.count_put_aside(str(path)) == 3


# --- a real daemon -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_newest_rows_are_lost(sandbox: Sandbox, connect: Connect) -> None:
    """As after a power cut: sinks have passed the journal's end, and yet what is new is written."""
    daemon = sandbox.serve()
    first = connect("torn")
    for step in range(300):
        first.emit({"a": step / 3}, step=step)
        if step % 100 == 99:
            assert first.flush(30)
    sandbox.await_sink("torn", "ok")
    assert first.finish(30)
    sandbox.await_sink("torn", "closed")
    daemon.kill()
    log = sandbox.state / "journal.sqlite-wal"
    os.truncate(log, log.stat().st_size * 2 // 3)

    sandbox.serve()
    second = connect("torn")
    for step in range(300, 400):
        second.emit({"a": step / 3}, step=step)
    assert second.finish(30)
    sandbox.drain()
    expected = points(("a", step, step / 3) for step in range(400))
    assert_exactly(read_scalars(sandbox.event_files("torn")), expected)


def test_damage_that_is_met_while_it_is_read(sandbox: Sandbox, connect: Connect) -> None:
    """A daemon whose worker meets it leaves; the next one puts the journal aside."""
    sandbox.logs.write_text("not a directory yet")
    daemon = sandbox.serve()
    made = connect("met")
    for step in range(20):
        made.emit({"a": float(step)}, step=step)
        assert made.flush(30)
    sandbox.await_sink("met", "degraded")
    path = sandbox.state / "journal.sqlite"
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    (index,) = connection.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'batches_of_run'"
    ).fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((index - 1) * 8192)
        file.write(b"\xff" * 64)
    for worker in sandbox.workers():  # what it has in its memory is good still
        worker.kill()
    daemon.process.wait(60)
    assert "the next daemon puts it aside" in daemon.said()
    sandbox.logs.unlink()

    sandbox.serve()
    for step in range(20, 40):
        made.emit({"a": float(step)}, step=step)
    assert made.finish(30)
    sandbox.drain()
    assert sandbox.status()["daemon"]["damaged_journals"] == 1
    assert "put aside" in sandbox.cli("status").stdout
    found = read_scalars(sandbox.event_files("met"))
    assert_exactly(found, points(("a", step, float(step)) for step in range(20, 40)))


def test_deleted_while_it_is_in_use(sandbox: Sandbox, connect: Connect) -> None:
    """What is acknowledged is in a journal that somebody will read, or nobody acknowledges."""
    daemon = sandbox.serve()
    made = connect("deleted")
    made.emit({"a": 0.0}, step=0)
    assert made.flush(30)
    sandbox.drain()
    shutil.rmtree(sandbox.state)
    wait_until(lambda: daemon.process.poll() is not None, 30, "the daemon goes on")
    assert "deleted or replaced while it was in use" in daemon.said()
    made.emit({"a": 1.0}, step=1)
    sandbox.serve()
    assert made.finish(30)
    sandbox.drain()
    written = points([("a", 0, 0.0), ("a", 1, 1.0)])
    assert_exactly(read_scalars(sandbox.event_files("deleted")), written)

"""A worker's loop: every row once after each commit, whatever the sink does in between."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sidestep.proto import RunSpec
from sidestep.proto.records import Scalars, encode_scalars
from sidestep.sidecar import worker as worker_module
from sidestep.sidecar.journal.reader import JournalReader
from sidestep.sidecar.journal.writer import ClientRow, Journal
from sidestep.sidecar.rows.points import Points, ScalarBlock
from sidestep.sidecar.sinks.base import SinkContext
from sidestep.sidecar.supervision.cursor_file import load
from sidestep.sidecar.worker import Worker

SPEC = RunSpec("r", "/logs")


class MemorySink:
    """A sink that undoes what was not committed, as TensorBoard's does, and fails on demand."""

    def __init__(self, kept: list[int], failures: dict[str, list[Exception]]) -> None:
        self._kept = kept
        self._failures = failures

    def _maybe_fail(self, where: str) -> None:
        if self._failures.get(where):
            raise self._failures[where].pop(0)

    def open(self, context: SinkContext) -> None:
        self._maybe_fail("open")
        if context.state is None:
            context.save({"n": 0})
        del self._kept[int((context.state or {"n": 0})["n"]) :]  # type: ignore[call-overload]

    def write(self, points: Iterable[Points]) -> None:
        for block in points:
            assert isinstance(block, ScalarBlock)
            self._kept.extend(block.steps.tolist())
            self._maybe_fail("write")

    def commit(self) -> dict[str, object]:
        self._maybe_fail("commit")
        return {"n": len(self._kept)}

    def close(self, finished: bool) -> None:
        self._maybe_fail("close")


class Bench:
    """A journal, a worker in a thread, and what it reports."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "journal.sqlite")
        self.cursor = str(folder / "1.memory")
        self.kept: list[int] = []
        self.failures: dict[str, list[Exception]] = {}
        self.reports: queue.Queue[dict[str, Any]] = queue.Queue()
        self.inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.journal = Journal(self.path)
        self.journal.begin()
        self.run_id = self.journal.put_run(SPEC)
        client = ClientRow(0, b"u" * 16, self.run_id, 0, 0, 1, "live", 0, 0, 0, 0, None)
        self.client_id = self.journal.put_client(client)
        self.journal.put_tag_set(self.client_id, 0, ("loss",))
        self.journal.commit()
        self.next_step = 0

    def append(self, rows: int) -> None:
        self.journal.begin()
        for _ in range(rows):
            data = encode_scalars(Scalars(0, self.next_step, 1, (0.5,)))
            self.journal.append(self.run_id, self.client_id, 1, data)
            self.next_step += 1
        self.journal.commit()
        self.inbox.put({"op": "rows"})

    def start(self) -> threading.Thread:
        worker = Worker(
            "memory",
            self.run_id,
            SPEC,
            self.path,
            self.cursor,
            self.reports.put,
            lambda _: MemorySink(self.kept, self.failures),
        )
        thread = threading.Thread(target=worker.serve, args=(self.inbox,))
        thread.start()
        return thread

    def await_report(self, **fields: object) -> dict[str, Any]:
        while True:
            report = self.reports.get(timeout=20)
            if all(report[key] == value for key, value in fields.items()):
                return report


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(worker_module, "_BACKOFF_FIRST_S", 0.001)
    bench = Bench(tmp_path)
    yield bench
    bench.journal.close()


def _close(bench: Bench, thread: threading.Thread) -> None:
    bench.inbox.put({"op": "close", "finished": True})
    thread.join(20)
    assert not thread.is_alive()


def test_rows_arrive_once_in_order_and_the_cursor_follows(bench: Bench) -> None:
    bench.append(5)
    thread = bench.start()
    assert bench.await_report(row=5, state="ok")["total"] == 5
    bench.append(3)
    bench.await_report(row=8, state="ok")
    _close(bench, thread)
    assert bench.kept == list(range(8))
    stored = load(bench.cursor, JournalReader(bench.path).identity())
    assert (stored.row, stored.state) == (8, {"n": 8})


@pytest.mark.parametrize("where", ["open", "write", "commit"])
def test_a_failure_is_reported_and_what_was_not_committed_comes_again(
    bench: Bench, where: str
) -> None:
    bench.failures[where] = [OSError(28, "No space left on device") for _ in range(3)]
    bench.append(5)
    thread = bench.start()
    report = bench.await_report(state="degraded")
    assert "No space left" in report["error"]
    assert report["row"] == 0
    assert bench.await_report(state="ok", row=5)["error"] is None
    _close(bench, thread)
    assert bench.kept == list(range(5))


def test_a_missing_package_is_final_and_says_what_to_install(bench: Bench) -> None:
    bench.failures["open"] = [ModuleNotFoundError("No module named 'wandb'")]
    thread = bench.start()
    assert "pip install" in bench.await_report(state="failed")["error"]
    thread.join(20)
    assert not thread.is_alive()


def test_a_worker_that_waits_to_retry_closes_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_BACKOFF_FIRST_S", 1000.0)
    bench.failures["open"] = [OSError("down")]
    thread = bench.start()
    bench.await_report(state="degraded")
    _close(bench, thread)


def test_a_row_that_cannot_be_read_is_counted_and_passed(bench: Bench) -> None:
    bench.append(1)
    bench.journal.begin()
    bench.journal.append(bench.run_id, bench.client_id, 4, b"rubbish!")
    bench.journal.commit()
    bench.append(1)
    thread = bench.start()
    report = bench.await_report(state="ok", row=3)
    assert report["skipped"] == 4
    _close(bench, thread)
    assert bench.kept == [0, 1]


def test_tag_sets_defined_later_are_looked_up_again(bench: Bench) -> None:
    bench.append(1)
    thread = bench.start()
    bench.await_report(row=1, state="ok")
    bench.journal.begin()
    bench.journal.put_tag_set(bench.client_id, 1, ("a", "b"))
    data = encode_scalars(Scalars(1, 77, 1, (0.5, 1.5)))
    bench.journal.append(bench.run_id, bench.client_id, 1, data)
    bench.journal.commit()
    bench.inbox.put({"op": "rows"})
    assert bench.await_report(row=2, state="ok")["skipped"] == 0
    _close(bench, thread)
    assert bench.kept == [0, 77]


@pytest.mark.parametrize("column", ["records", "total", "data", "kinds"])
@pytest.mark.parametrize("odd", [5, 1.5, "text", b"bytes"], ids=str)
def test_a_row_whose_columns_are_of_other_types_delays_nobody(
    bench: Bench, column: str, odd: object
) -> None:
    """SQLite gives back what a damaged page says."""
    bench.append(2)
    bench.journal.connection.execute(f"UPDATE batches SET {column} = ? WHERE id = 1", (odd,))
    thread = bench.start()
    bench.await_report(state="ok", row=2)
    _close(bench, thread)
    assert bench.kept in ([0, 1], [1])


@pytest.mark.parametrize("tags", [b"", b"\xc1", b"\x05", b"\x91\x05", b"\x90", 7, "text"], ids=str)
def test_tag_sets_that_are_damaged_are_not_defined(bench: Bench, tags: object) -> None:
    bench.append(1)
    bench.journal.connection.execute("UPDATE tag_sets SET tags = ?", (tags,))
    thread = bench.start()
    assert bench.await_report(state="ok", row=1)["skipped"] == 1
    bench.journal.put_tag_set(bench.client_id, 0, ("loss",))
    bench.append(1)
    assert bench.await_report(state="ok", row=2)["skipped"] == 1
    _close(bench, thread)
    assert bench.kept == [1]

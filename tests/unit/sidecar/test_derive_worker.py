"""The derivers' process: rows in, messages out; what is bad is counted and costs nothing else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgpack
import numpy as np
import pytest

from sidestep.proto import Array, RunSpec, Value
from sidestep.proto.records import decode_value, encode_value
from sidestep.sidecar.derive import worker as worker_module
from sidestep.sidecar.derive.deriver import Derived, Observation, Source
from sidestep.sidecar.derive.worker import Worker, start_message
from sidestep.sidecar.journal.reader import JournalReader
from sidestep.sidecar.journal.writer import ClientRow, Journal
from sidestep.sidecar.supervision.channel import MAX_MESSAGE_BYTES, Channel, ChannelClosedError
from tests.support.moments import moments_value

RNG = np.random.default_rng(0)


class Said:
    """A channel that keeps what is sent, as it would arrive."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        data = cast("bytes", msgpack.packb(message))
        assert len(data) <= MAX_MESSAGE_BYTES
        self.messages.append(msgpack.unpackb(data))


class Watch:
    """Keeps what it is shown, and answers with a number of its own."""

    def __init__(self, error: Exception | None = None) -> None:
        self.seen: list[Observation] = []
        self._error = error

    def restore(self, run_id: int, states: Mapping[str, bytes]) -> None:
        pass

    def __call__(self, observation: Observation) -> Iterator[Derived]:
        self.seen.append(observation)
        if self._error is not None:
            raise self._error
        tag = f"sidestep/alarm/{observation.tag}"
        yield Derived(observation.step, observation.time_ns, {tag: 0.0})


class Bench:
    """A journal of one run, and a worker that reads it."""

    def __init__(self, folder: Path) -> None:
        self._journal = Journal(str(folder / "journal.sqlite"))
        self._journal.begin()
        self.run_id = self._journal.put_run(RunSpec("r", "/logs"))
        client = ClientRow(0, b"uuid", self.run_id, 0, 0, 1, "live", 0, 0, 0, 0, None)
        self._client_id = self._journal.put_client(client)
        self.other_run_id = self._journal.put_run(RunSpec("other", "/logs"))
        # As ingest does it with the first value of a derived kind.
        self._journal.put_cursor("derive", self.run_id, 0)
        self._journal.put_cursor("derive", self.other_run_id, 0)
        self._journal.commit()
        self.path = str(folder / "journal.sqlite")
        self.said = Said()

    def row(self, *values: Value, run_id: int | None = None) -> int:
        """Journal values as one row; its number."""
        data = b"".join(b"".join(encode_value(value)[1]) for value in values)
        self._journal.begin()
        kinds = {value.kind for value in values}
        run_id = self.run_id if run_id is None else run_id
        row = self._journal.append(run_id, self._client_id, len(values), data, kinds)
        self._journal.commit()
        return row

    def worker(self, *watching: Any) -> Worker:
        reader = JournalReader(self.path)
        return Worker(cast("Channel", self.said), reader, watching)

    def scalars(self) -> list[tuple[int, dict[str, float]]]:
        return [(s, found) for m in self.said.messages for s, _, found in m["scalars"]]

    def values(self) -> list[Value]:
        return [decode_value(data) for m in self.said.messages for data in m["values"]]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def good(step: int = 0, tag: str = "x", due: bool = False) -> Value:
    return moments_value(RNG.normal(size=(16, 8)), due=due, tag=tag, step=step)


def bad(step: int = 0) -> Value:
    return Value("moments", "bad", step, 1, {"v": 1})


def test_numbers_and_values_of_a_row_come_with_its_number(bench: Bench) -> None:
    other = Value("text", "t", 0, 1, {"text": "words"})
    rows = [bench.row(good(0, due=True), other, good(0, "y")), bench.row(good(1))]
    bench.worker().derive(bench.run_id, 0)
    assert [m["row"] for m in bench.said.messages] == rows
    assert all(m["run_id"] == bench.run_id and m["refused"] == 0 for m in bench.said.messages)
    found = [(step, next(iter(values)), len(values)) for step, values in bench.scalars()]
    assert [(step, tag.split("_")[0]) for step, tag, _ in found] == [(0, "x"), (0, "y"), (1, "x")]
    assert found[0][2] == found[1][2] + 6  # the spectrum's; eight eigenvalues make no slope
    assert [(v.kind, v.tag, v.step) for v in bench.values()] == [
        ("spectrum", "x_spectrum", 0),
        ("histogram", "x_eigenvalues", 0),
    ]
    curve, logs = (np.frombuffer(v.arrays[0].data) for v in bench.values())
    np.testing.assert_array_equal(logs, np.log10(curve))
    assert bench.values()[0].info["d"] == 8
    assert bench.values()[0].time_ns == good(0).time_ns


def test_a_malformed_value_costs_itself_alone(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.row(good(1), bad(1), bad(1), good(1, "y"))
    bench.row(bad(2))
    bench.row(good(3))
    bench.worker().derive(bench.run_id, 0)
    assert [m["refused"] for m in bench.said.messages] == [2, 1, 0]
    assert [step for step, _ in bench.scalars()] == [1, 1, 3]
    said = capsys.readouterr().out
    assert said.count("nothing can be derived of moments 'bad'") == 3
    assert "version 1, not 2" in said


def test_a_failure_of_any_kind_is_not_met_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(source: Source, value: Value) -> Iterator[Derived]:
        if value.step == 1:
            raise np.linalg.LinAlgError("Eigenvalues did not converge")
        yield Derived(value.step, value.time_ns, {"fine": 1.0})

    monkeypatch.setattr(worker_module, "deriver_of", lambda kind: broken)
    rows = [bench.row(good(step)) for step in range(3)]
    bench.worker().derive(bench.run_id, 0)
    assert [m["row"] for m in bench.said.messages] == rows
    assert [step for step, _ in bench.scalars()] == [0, 2]
    assert "LinAlgError: Eigenvalues did not converge" in capsys.readouterr().out


def test_a_damaged_row_is_passed(bench: Bench) -> None:
    row = bench.row(good())
    bench._journal.begin()
    bench._journal._connection.execute("UPDATE batches SET data = x'00112233' WHERE id = ?", (row,))
    bench._journal.commit()
    last = bench.row(good())
    bench.worker().derive(bench.run_id, 0)
    assert [(m["row"], m["refused"]) for m in bench.said.messages] == [(row, 1), (last, 0)]


def test_kinds_that_nobody_derives_from_are_passed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "deriver_of", lambda kind: None)
    row = bench.row(good())
    bench.worker().derive(bench.run_id, 0)
    (message,) = bench.said.messages
    assert (message["row"], message["scalars"], message["refused"]) == (row, [], 0)


def test_much_of_one_row_is_divided(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts bound what either end holds; only the last one says that the row is done."""
    mib = Array("uint8", (1 << 20,), bytes(1 << 20))

    def much(source: Source, value: Value) -> Iterable[Derived]:
        for i in range(11):
            yield Derived(i, 1, {f"n{i}": float(i)}, [Value("image", f"v{i}", i, 1, {}, [mib])])

    monkeypatch.setattr(worker_module, "deriver_of", lambda kind: much)
    row = bench.row(good())
    bench.worker().derive(bench.run_id, 0)
    *parts, last = bench.said.messages
    assert len(parts) == 2
    assert all("row" not in part for part in parts)
    assert last["row"] == row
    assert [step for step, _ in bench.scalars()] == list(range(11))
    assert [value.tag for value in bench.values()] == [f"v{i}" for i in range(11)]
    assert max(len(msgpack.packb(m)) for m in bench.said.messages) < 6 << 20


@pytest.mark.parametrize(
    "extras", [[f"e{i}" for i in range(4100)], ["e" * 5000]], ids=["many", "long"]
)
def test_more_statistics_than_a_record_has_room_for_are_refused(
    bench: Bench, extras: list[str]
) -> None:
    """Ingest, which journals them, would end with the daemon: again after each restart."""
    bench.row(moments_value(RNG.normal(size=(8, 4)), extras=dict.fromkeys(extras, 1.0)))
    bench.worker().derive(bench.run_id, 0)
    (message,) = bench.said.messages
    assert message["refused"] == 1
    assert message["scalars"] == []


def test_what_no_message_can_hold_is_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    huge = Array("uint8", (33 << 20,), bytes(33 << 20))

    def too_much(source: Source, value: Value) -> Iterable[Derived]:
        yield Derived(0, 1, {"kept": 1.0}, [Value("image", "huge", 0, 1, {}, [huge])])
        yield Derived(0, 1, {}, [Value("image", "x" * 5000, 0, 1)])

    monkeypatch.setattr(worker_module, "deriver_of", lambda kind: too_much)
    bench.row(good())
    bench.worker().derive(bench.run_id, 0)
    (message,) = bench.said.messages
    assert (message["refused"], message["values"]) == (2, [])
    assert bench.scalars() == [(0, {"kept": 1.0})]
    assert "image 'huge'" in capsys.readouterr().out


# --- those who watch -----------------------------------------------------------------------------


def test_watchers_see_every_observation_in_order(bench: Bench) -> None:
    watch = Watch()
    bench.row(good(5, "a"), good(5, "b", due=True))
    bench.row(good(6, "a"))
    bench.worker(watch).derive(bench.run_id, 0)
    assert [(o.run_id, o.tag, o.step) for o in watch.seen] == [
        (bench.run_id, "a", 5),
        (bench.run_id, "b", 5),
        (bench.run_id, "a", 6),
    ]
    for observation in watch.seen:
        figures = observation.figures
        assert (figures["n_dims"], figures["n_image_tokens"]) == (8, 16)
        assert {"variance_share", "pr_images", "nonfinite"} <= figures.keys()
        assert ("rank" in figures) is (observation.tag == "b")
    # What they answer stands behind the observation's own figures, in the same row.
    alarms = [step for step, found in bench.scalars() if "sidestep/alarm/a" in found]
    assert alarms == [5, 6]
    by_row = [[next(iter(found)) for _, _, found in m["scalars"]] for m in bench.said.messages]
    assert by_row == [
        ["a_n_rows", "sidestep/alarm/a", "b_n_rows", "sidestep/alarm/b"],
        ["a_n_rows", "sidestep/alarm/a"],
    ]


def test_a_watcher_that_fails_costs_no_figure(bench: Bench) -> None:
    bench.row(good(1), good(2))
    bench.worker(Watch(RuntimeError("no"))).derive(bench.run_id, 0)
    (message,) = bench.said.messages
    assert message["refused"] == 2
    assert [step for step, found in bench.scalars() if "x_std" in found] == [1, 2]


# --- where it goes on ----------------------------------------------------------------------------


def test_no_row_is_derived_twice_by_one_process(bench: Bench) -> None:
    worker = bench.worker()
    bench.row(good(0))
    worker.derive(bench.run_id, 0)
    bench.row(good(1))
    # The daemon has not yet seen that the first is done.
    worker.derive(bench.run_id, 0)
    worker.derive(bench.run_id, 0)
    assert [step for step, _ in bench.scalars()] == [0, 1]


def test_a_new_process_goes_on_from_the_cursor(bench: Bench) -> None:
    first = bench.row(good(0))
    bench.row(good(1))
    bench._journal.begin()
    bench._journal.put_cursor("derive", bench.run_id, first)
    bench._journal.commit()
    bench.worker().derive(bench.run_id, first)
    assert [step for step, _ in bench.scalars()] == [1]


def test_runs_take_turns(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with much to derive does not keep the others waiting."""
    monkeypatch.setattr(worker_module, "_MAX_BYTES", 1)
    runs = {bench.run_id: 6, bench.other_run_id: 3}
    for run_id, count in runs.items():
        for step in range(count):
            bench.row(good(step), run_id=run_id)
    ours, theirs = (Channel(end) for end in socket.socketpair())
    ours.send(start_message(bench.path, None))
    for run_id in runs:
        ours.send({"op": "rows", "run_id": run_id, "after": 0})

    def serve() -> None:
        with pytest.raises(ChannelClosedError):
            worker_module._serve(theirs)

    thread = threading.Thread(target=serve)
    thread.start()
    found: list[tuple[int, int]] = []
    while len(found) < sum(runs.values()):
        found += [(m["run_id"], m["scalars"][0][0]) for m in ours.receive()]
    ours.close()
    thread.join(30)
    assert not thread.is_alive()
    theirs.close()
    a, b = runs
    assert found[:6] == [(a, 0), (b, 0), (a, 1), (b, 1), (a, 2), (b, 2)]
    assert found[6:] == [(a, 3), (a, 4), (a, 5)]

"""Reductions over ranks: in any order, whatever dies and wherever: once, and exact or marked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import reduce as fold
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from unittest import mock

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sidestep.proto import Array, RunSpec, Scalars, Value
from sidestep.proto.limits import MAX_TAGS_PER_RECORD
from sidestep.proto.records import encode_scalars, encode_value
from sidestep.proto.tag_sets import RANK_PART, REDUCTIONS, ReducedTags
from sidestep.sidecar.alarms import Rules
from sidestep.sidecar.derive import reducer as reducer_module, worker as worker_module
from sidestep.sidecar.derive.additive import merge
from sidestep.sidecar.derive.decode import decode
from sidestep.sidecar.derive.deriving import Deriving, underived
from sidestep.sidecar.derive.figures import figures
from sidestep.sidecar.derive.reduced_numbers import reduced, reduced_columns
from sidestep.sidecar.derive.rounds import Channel, Spans
from sidestep.sidecar.derive.worker import Worker
from sidestep.sidecar.ingest.own_points import OwnPoints
from sidestep.sidecar.ingest.roster import REDUCED, DaemonPoints, RunEntry
from sidestep.sidecar.journal.reader import JournalReader
from sidestep.sidecar.journal.writer import ClientRow, Journal
from sidestep.sidecar.rows.points import ScalarBlock, read_points
from sidestep.sidecar.sinks.rendering.buckets import counts_of, edges_of, moments_of
from tests.support.moments import moments_value
from tests.unit.sidecar.test_derive_parameters import value_of as parameters_value

TIMEOUT_S = 30.0
TAGS = ("loss", "acc")


class Node:
    """A journal, ingest's end of the derivers, and their process: one that can die at any time."""

    def __init__(self, folder: str, ranks: int, timeout_s: float = TIMEOUT_S) -> None:
        self.now_s = 1000.0
        self.timeout_s = timeout_s
        self.journal = Journal(f"{folder}/journal.sqlite")
        self.journal.begin()
        self.run = RunEntry(self.journal.put_run(RunSpec("r", "/logs")), RunSpec("r", "/logs"))
        self.run.derived_row = 0
        self.journal.put_cursor("derive", self.run.id, 0)
        self.journal.commit()
        self.clients: list[int] = []
        for rank in range(ranks):
            self.join(rank, ranks)
        self.own = OwnPoints(self.journal)
        self.sent: list[dict[str, Any]] = []  # of the process, not yet with ingest
        self.inbox: list[DaemonPoints] = []
        self.refused = 0
        self.begin()

    # --- the process -----------------------------------------------------------------------------

    def begin(self) -> None:
        """A new process; what the one before it had not handed over is lost."""
        self.sent.clear()
        self.deriving = Deriving("j", Rules(), self.inbox.append, lambda _: None)
        reader = JournalReader(self.journal.path)
        self.worker = Worker(cast("Any", self), reader, (), self.timeout_s, lambda: self.now_s)

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(msgpack.unpackb(msgpack.packb(message)))

    def hand_over(self, many: int) -> None:
        """So many of its messages reach the daemon."""
        for message in self.sent[:many]:
            self.deriving._take(message)
        del self.sent[:many]

    def commit(self, many: int) -> None:
        """So many of them are journalled; one that does not fit ends the process, as in life."""
        for points in self.inbox[:many]:
            self.journal.begin()
            fits = self.own.append(self.run, points)
            self.journal.commit()
            if not fits:
                self.refused += 1
                self.begin()
        del self.inbox[:many]

    def work(self, seconds: float = 1.0) -> None:
        """Read and say all that there is; then so much time passes, and it is looked again."""
        while self.worker.derive(self.run.id, self.run.derived_row or 0) or self.sent or self.inbox:
            self.hand_over(len(self.sent))
            self.commit(len(self.inbox))
        self.now_s += seconds
        self.worker.look()
        self.hand_over(len(self.sent))
        self.commit(len(self.inbox))

    # --- ranks -----------------------------------------------------------------------------------

    def join(self, rank: int, size: int, world: int = 1) -> int:
        """A client comes; its id."""
        self.journal.begin()
        uuid = f"{len(self.clients)}".encode()
        row = ClientRow(0, uuid, self.run.id, rank, 0, 1, "live", 0, 0, 0, 0, None)
        client_id = self.journal.put_client(row)
        sql = "INSERT INTO worlds VALUES (?, ?, ?)"
        self.journal.connection.execute(sql, (client_id, world, size))
        self.journal.commit()
        self.clients.append(client_id)
        return client_id

    def leave(self, client_id: int, state: str = "lost") -> None:
        self.journal.begin()
        sql = "UPDATE clients SET state = ? WHERE id = ?"
        self.journal.connection.execute(sql, (state, client_id))
        self.journal.commit()

    def row(
        self, client_id: int, *records: Scalars | Value, tags: dict[int, Any] | None = None
    ) -> None:
        """Journal records as one row, as ingest does."""
        self.journal.begin()
        for number, names in (tags or {0: ReducedTags(TAGS, "mean")}).items():
            self.journal.put_tag_set(client_id, number, names)
        data = b"".join(
            encode_scalars(r) if isinstance(r, Scalars) else b"".join(encode_value(r)[1])
            for r in records
        )
        kinds = {r.kind if isinstance(r, Value) else REDUCED for r in records}
        row = self.journal.append(self.run.id, client_id, len(records), data, kinds)
        self.run.to_derive_row = row
        self.journal.commit()

    # --- what was said ---------------------------------------------------------------------------

    def said(self) -> list[ScalarBlock | Value]:
        """Everything that the derivers had journalled."""
        reader = JournalReader(self.journal.path)
        try:
            return [
                cast("Any", point)
                for row in reader.rows(0, self.run.id, max_bytes=1 << 30)
                if row.client_id not in self.clients
                for point in read_points(row.data, reader.tag_sets(row.client_id, True))
            ]
        finally:
            reader.close()

    def numbers(self) -> list[tuple[str, int, float]]:
        """Tag, step and value of all numbers."""
        return [
            (tag, int(step), float(block.values[n, column]))
            for block in self.said()
            if isinstance(block, ScalarBlock)
            for n, step in enumerate(block.steps)
            for column, tag in enumerate(block.tags)
        ]

    def curve(self, tag: str) -> dict[int, float]:
        """A tag's values by their steps, each of which is there once."""
        found = [(step, value) for name, step, value in self.numbers() if name == tag]
        assert len(found) == len(dict(found)), f"{tag} was shown twice: {found}"
        return dict(found)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(ranks: int, timeout_s: float = TIMEOUT_S) -> Node:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Node(str(folder), ranks, timeout_s))
        return made[-1]

    yield make
    for one in made:
        one.journal.close()


def scalars(step: int, *values: float, tag_set: int = 0) -> Scalars:
    return Scalars(tag_set, step, 10**9 * (step + 1), values)


def part(value: Value, reduce: str = "mean") -> Value:
    info = {"kind": value.kind, "info": dict(value.info), "reduce": reduce}
    return Value(RANK_PART, value.tag, value.step, value.time_ns, info, value.arrays)


# --- numbers -------------------------------------------------------------------------------------

FLOATS = st.floats(allow_nan=True, allow_infinity=True)


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


@given(st.lists(FLOATS, min_size=1, max_size=20), st.randoms())
def test_no_order_changes_a_reduction(values: list[float], random: Any) -> None:
    shuffled = random.sample(values, len(values))
    for how in ("mean", "sum", "min", "max", "spread"):
        first, second = reduced(how, values), reduced(how, shuffled)
        assert all(same(first[key], second[key]) for key in first), how


@given(
    st.integers(1, 5).flatmap(
        lambda tags: st.lists(st.lists(FLOATS, min_size=tags, max_size=tags), min_size=1)
    )
)
def test_columns_are_reduced_as_each_alone(table: list[list[float]]) -> None:
    for how in REDUCTIONS:
        found = reduced_columns(how, np.array(table))
        for column, numbers in enumerate(zip(*table, strict=True)):
            alone = reduced(how, numbers)
            assert found.keys() == alone.keys()
            assert all(same(found[key][column], alone[key]) for key in alone), how


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=20))
def test_reductions_are_those_of_float64(values: list[float]) -> None:
    found = reduced("spread", values)
    scale = max(map(abs, values)) or 1.0
    reference = np.array(values) / scale
    assert found[""] / scale == pytest.approx(reference.mean(), rel=1e-12, abs=1e-14)
    assert found["_std"] / scale == pytest.approx(reference.std(), rel=1e-9, abs=1e-12)
    assert (found["_min"], found["_max"]) == (min(values), max(values))
    assert found["_min"] <= found[""] <= found["_max"] or scale < 1e-300
    assert reduced("mean", values)[""] == found[""]
    assert reduced("sum", values)[""] / scale == pytest.approx(
        reference.sum(), rel=1e-12, abs=1e-14
    )


def test_what_is_not_finite_is_not_hidden() -> None:
    for how in ("mean", "sum", "min", "max"):
        assert math.isnan(reduced(how, [1.0, math.nan, 2.0])[""]), how
    assert all(map(math.isnan, reduced("spread", [1.0, math.nan]).values()))
    assert reduced("mean", [1.0, math.inf])[""] == math.inf
    assert math.isnan(reduced("sum", [math.inf, -math.inf])[""])
    assert reduced("min", [1.0, -math.inf])[""] == -math.inf
    huge = 1.7e308
    assert reduced("mean", [huge] * 4)[""] == huge
    assert reduced("sum", [huge, huge, -huge])[""] == huge
    assert reduced("sum", [huge, huge])[""] == math.inf
    assert reduced("spread", [huge, -huge])["_std"] == huge
    assert reduced("spread", [5e-324, 0.0])["_max"] == 5e-324


# --- once, in any order, whatever is killed ------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_each_step_is_shown_once_and_exact_whatever_dies(data: st.DataObject) -> None:
    ranks, steps = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 6))
    orders = st.sampled_from([0] if data.draw(st.booleans()) else [0, 1])  # of the tags
    tags = {0: ReducedTags(TAGS, "mean"), 1: ReducedTags(TAGS[::-1], "mean")}
    values = {
        (rank, step): [rank * 0.1 + step, (rank + 1) ** 0.5 / (step + 1)]
        for rank in range(ranks)
        for step in range(steps)
    }
    actions = ["emit", "derive", "hand_over", "commit", "crash", "look"]
    at_once = data.draw(st.sampled_from([1, 16 << 20]))  # rows, by their bytes
    with (
        TemporaryDirectory() as folder,
        mock.patch.object(worker_module, "_MAX_BYTES", at_once),
    ):
        node = Node(folder, ranks)
        at = dict.fromkeys(range(ranks), 0)
        for action in data.draw(st.lists(st.sampled_from(actions), max_size=40)):
            match action:
                case "emit":
                    rank = data.draw(st.sampled_from(range(ranks)))
                    many = min(data.draw(st.integers(1, 3)), steps - at[rank])
                    order = data.draw(orders)
                    found = [
                        scalars(s, *values[rank, s][:: -1 if order else 1], tag_set=order)
                        for s in range(at[rank], at[rank] + many)
                    ]
                    if found:
                        node.row(node.clients[rank], *found, tags=tags)
                    at[rank] += many
                case "derive":
                    node.worker.derive(node.run.id, 0)
                case "hand_over":
                    node.hand_over(data.draw(st.integers(0, 3)))
                case "commit":
                    node.commit(data.draw(st.integers(0, 3)))
                case "crash":
                    node.begin()
                case _:
                    node.now_s += 0.5
                    node.worker.look()
        for rank, first in at.items():
            if first < steps:
                rest = [scalars(s, *values[rank, s]) for s in range(first, steps)]
                node.row(node.clients[rank], *rest)
        for _ in range(4):
            node.work(seconds=0.5)
        node.work(TIMEOUT_S)  # what had been taken twice would be shown now
        for column, tag in enumerate(TAGS):
            expected = {
                s: math.fsum(values[r, s][column] for r in range(ranks)) / ranks
                for s in range(steps)
            }
            assert node.curve(tag) == expected
        assert {tag for tag, _, _ in node.numbers()} == set(TAGS)
        assert not underived(node.run), "nothing is awaited, and no row is held"
        node.journal.close()


def test_tags_that_part_while_they_are_awaited(node: Callable[..., Node]) -> None:
    n = node(3)
    n.row(n.clients[0], scalars(0, 1.0, 10.0), scalars(1, 2.0, 20.0))
    n.row(n.clients[1], scalars(0, 3.0, 30.0))
    n.work(0.5)
    other = {1: ReducedTags(("acc", "other"), "mean"), 2: ReducedTags(("loss",), "mean")}
    n.row(n.clients[2], scalars(0, 50.0, 0.0, tag_set=1), tags=other)
    n.row(n.clients[2], scalars(0, 5.0, tag_set=2), scalars(1, 8.0, tag_set=2), tags=other)
    n.begin()
    n.row(n.clients[1], scalars(1, 5.0, 60.0))
    n.work(0.5)
    assert (n.curve("loss"), n.curve("acc")) == ({0: 3.0, 1: 5.0}, {0: 30.0})
    n.work(TIMEOUT_S)
    assert n.curve("acc") == {0: 30.0, 1: 40.0}
    assert (n.curve("acc_ranks"), n.curve("other_ranks")) == ({1: 2.0}, {0: 1.0})
    assert not underived(n.run)


def test_late_words_of_some_of_the_tags(node: Callable[..., Node]) -> None:
    n = node(2)
    alone = {1: ReducedTags(("acc",), "mean")}
    n.row(n.clients[1], scalars(0, 4.0, tag_set=1), tags=alone)
    n.row(n.clients[0], scalars(0, 1.0, 2.0))
    n.work(TIMEOUT_S)
    assert (n.curve("loss_ranks"), n.curve("acc")) == ({0: 1.0}, {0: 3.0})
    n.row(n.clients[1], scalars(0, 9.0, 9.0), scalars(1, 9.0, 9.0))
    n.row(n.clients[0], scalars(1, 1.0, 2.0))
    n.work(0.5)
    assert (n.curve("loss"), n.run.reductions["late"]) == ({0: 1.0, 1: 5.0}, 1)


def test_a_spread_of_as_many_tags_as_there_may_be(node: Callable[..., Node]) -> None:
    n = node(2)
    names = tuple(f"t{k}" for k in range(MAX_TAGS_PER_RECORD))
    for client in n.clients:
        n.row(client, scalars(0, *range(len(names))), tags={0: ReducedTags(names, "spread")})
    n.work()
    assert len(n.numbers()) == 4 * len(names)
    assert n.deriving.refused == 0


def test_a_process_that_read_too_early_says_nothing_twice(node: Callable[..., Node]) -> None:
    """The last words of the one before it were journalled after it had looked."""
    n = node(2)
    n.row(n.clients[0], scalars(0, 1.0, 2.0))
    n.row(n.clients[1], scalars(0, 3.0, 4.0))
    n.worker.derive(n.run.id, 0)
    n.hand_over(9)  # on its way into the journal
    n.begin()
    n.worker.derive(n.run.id, 0)
    n.hand_over(9)
    for _ in range(3):
        n.work()
    assert n.refused > 0
    assert n.curve("loss") == {0: 2.0}


def test_of_a_row_that_is_read_again_only_what_is_awaited_counts(
    node: Callable[..., Node],
) -> None:
    n = node(2)
    n.row(n.clients[0], *(scalars(s, 1.0, 2.0) for s in range(4)))
    n.row(n.clients[1], scalars(0, 3.0, 2.0), scalars(2, 3.0, 2.0))
    n.work(0.5)
    assert n.curve("loss") == {0: 2.0, 2: 2.0}
    n.begin()
    n.row(n.clients[1], scalars(1, 5.0, 2.0), scalars(3, 5.0, 2.0))
    n.work(0.5)
    n.work(TIMEOUT_S)
    assert n.curve("loss") == {0: 2.0, 1: 3.0, 2: 2.0, 3: 3.0}
    assert n.curve("loss_ranks") == {}


def test_a_death_while_rows_are_read_again_loses_none(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_MAX_BYTES", 1)  # a row at a time
    n = node(2)
    for step in range(3):
        n.row(n.clients[0], scalars(step, 1.0, 2.0))
    n.work(0.5)
    for _ in range(2):
        n.begin()
        n.worker.derive(n.run.id, 0)
        n.hand_over(9)
        n.commit(9)
    n.begin()
    n.row(n.clients[1], *(scalars(step, 3.0, 2.0) for step in range(3)))
    n.work(0.5)
    assert n.curve("loss") == dict.fromkeys(range(3), 2.0)


def test_ranks_that_emit_other_tags_beside_the_common_ones(node: Callable[..., Node]) -> None:
    n = node(2)
    tags = {0: ReducedTags(("loss", "lr"), "mean"), 1: ReducedTags(("n",), "sum"), 2: ("plain",)}
    n.row(n.clients[0], scalars(0, 1.0, 5.0), scalars(0, 7.0, tag_set=1), tags=tags)
    n.row(n.clients[0], *(scalars(i, 1.0, tag_set=2) for i in range(40)), tags=tags)
    other = {0: ReducedTags(("n", "loss"), "mean"), 1: ReducedTags(("n",), "sum")}
    n.row(n.clients[1], scalars(0, 2.0, 3.0), scalars(0, 1.0, tag_set=1), tags=other)
    n.work()
    assert sorted(n.numbers()) == [("loss", 0, 2.0), ("n", 0, 8.0)]
    n.work(TIMEOUT_S)
    # The mean of n, and lr, have one rank each.
    assert n.curve("lr") == {0: 5.0}
    assert n.curve("lr_ranks") == n.curve("n_ranks") == {0: 1.0}


def test_a_step_that_all_emit_twice_is_shown_twice(node: Callable[..., Node]) -> None:
    n = node(2)
    for value in (1.0, 10.0):
        n.row(n.clients[0], scalars(0, value, 0.0))
    n.work()
    n.begin()
    for value in (3.0, 30.0):
        n.row(n.clients[1], scalars(0, value, 0.0))
    n.work()
    assert [v for tag, _, v in n.numbers() if tag == "loss"] == [2.0, 20.0]


# --- ranks that do not speak ---------------------------------------------------------------------


def test_a_rank_that_hangs_is_waited_for_and_then_marked(node: Callable[..., Node]) -> None:
    n = node(3)
    for client in n.clients[:2]:
        n.row(client, scalars(0, 1.0, 2.0), scalars(1, 3.0, 4.0))
    n.work(TIMEOUT_S - 1)
    assert n.numbers() == []
    assert underived(n.run)
    n.work()
    assert n.curve("loss") == {0: 1.0, 1: 3.0}
    assert n.curve("loss_ranks") == n.curve("acc_ranks") == {0: 2.0, 1: 2.0}
    assert not underived(n.run)
    # Its late word is counted, told once, and not shown; what is not late is.
    n.row(n.clients[2], scalars(0, 9.0, 9.0), scalars(1, 9.0, 9.0), scalars(2, 9.0, 9.0))
    n.begin()
    for client in n.clients[:2]:
        n.row(client, scalars(2, 0.0, 0.0))
    n.work()
    assert n.curve("loss") == {0: 1.0, 1: 3.0, 2: 3.0}
    assert set(n.curve("loss_ranks")) == {0, 1}
    assert (n.run.reductions["late"], n.run.reductions["partial"]) == (4, 4)


@pytest.mark.parametrize("state", ["lost", "finished"])
def test_a_rank_that_has_gone_is_not_waited_for(node: Callable[..., Node], state: str) -> None:
    n = node(3)
    for client in n.clients:
        n.row(client, scalars(0, 1.0, 2.0))
    n.row(n.clients[2], scalars(1, 5.0, 5.0))
    n.leave(n.clients[2], state)
    for client in n.clients[:2]:
        n.row(client, scalars(1, 2.0, 2.0), scalars(2, 1.0, 3.0))
    n.work(0.5)
    assert n.curve("loss") == {0: 1.0, 1: 3.0, 2: 1.0}, "what it had said before counts"
    assert n.curve("loss_ranks") == {2: 2.0}


def test_when_all_have_gone_nothing_is_waited_for(node: Callable[..., Node]) -> None:
    n = node(2)
    n.row(n.clients[0], scalars(0, 1.0, 2.0))
    for client in n.clients:
        n.leave(client, "finished")
    n.work(0.5)
    assert n.curve("loss_ranks") == {0: 1.0}
    assert not underived(n.run)


def test_ranks_that_never_come_are_waited_for_once(node: Callable[..., Node]) -> None:
    """A script that connects on rank zero alone, started by torchrun."""
    n = node(0)
    client = n.join(0, 4)
    n.row(client, scalars(0, 1.0, 2.0))
    n.work(TIMEOUT_S)
    assert n.curve("loss_ranks") == {0: 1.0}
    n.row(client, scalars(1, 1.0, 2.0))
    n.work(0.5)
    assert n.curve("loss_ranks") == {0: 1.0, 1: 1.0}
    other = n.join(1, 4)  # one comes after all
    n.row(client, scalars(2, 1.0, 2.0))
    n.work(0.5)
    assert 2 not in n.curve("loss")
    n.row(other, scalars(2, 3.0, 2.0))
    n.work(0.5)
    assert n.curve("loss_ranks") == {0: 1.0, 1: 1.0, 2: 2.0}


def test_nearly_all_of_a_large_world_missing_is_a_few_bytes_of_each_tag() -> None:
    """They are stored with every message of the derivers."""
    channels = [Channel(1, "mean", f"t{number}") for number in range(100)]
    spans = Spans()
    for channel in channels:
        spans.partial(channel, 5, frozenset({*range(1, 1000), *range(1001, 5000)}))
    stored = msgpack.packb(spans.packed())
    assert len(stored) < 100 * 40
    again = Spans(msgpack.unpackb(stored))
    late = [again.is_late(channels[7], 5, rank) for rank in (0, 1, 999, 1000, 1001, 4999, 5000)]
    assert late == [False, True, True, False, True, True, False]
    assert not again.is_late(channels[7], 6, 1)
    assert (again.may_miss(1, 4999), again.may_miss(1, 0)) == (True, False)


def test_a_short_job_whose_first_rank_ends_before_the_last_begins(
    node: Callable[..., Node],
) -> None:
    n = node(0)
    first = n.join(0, 2)
    n.row(first, scalars(0, 1.0, 2.0))
    n.leave(first, "finished")
    n.work(0.5)
    assert n.numbers() == []
    n.row(n.join(1, 2), scalars(0, 3.0, 2.0))
    n.work(0.5)
    assert n.curve("loss") == {0: 2.0}
    assert n.curve("loss_ranks") == {}


def test_attempts_do_not_mix(node: Callable[..., Node]) -> None:
    """Elastic: two of three ranks said a step before they died; then two ranks go on, anew."""
    n = node(3)
    for client in n.clients[:2]:
        n.row(client, scalars(5, 100.0, 0.0))
    again = [n.join(rank, 2, world=2) for rank in range(2)]
    for number, client in enumerate(again):
        n.row(client, scalars(5, float(number), 0.0), scalars(6, 1.0, 0.0))
    for client in n.clients[:3]:
        n.leave(client)
    n.work(0.5)
    found = [(step, value) for tag, step, value in n.numbers() if tag == "loss"]
    assert Counter(found) == Counter([(5, 0.5), (6, 1.0), (5, 100.0)])
    assert n.curve("loss_ranks") == {5: 2.0}


@pytest.mark.parametrize("together", [True, False])
def test_what_is_awaited_is_bounded(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    monkeypatch.setattr(reducer_module, "_MAX_PARTS", 100)
    monkeypatch.setattr(reducer_module, "_MAX_BYTES", 50 * 318)
    n = node(2)
    tags = {0: ReducedTags(TAGS, "mean")}
    if not together:
        tags[1] = ReducedTags(TAGS[::-1], "mean")
        n.row(n.clients[0], scalars(0, 2.0, 1.0, tag_set=1), tags=tags)
    for first in range(0, 200, 20):
        n.row(n.clients[0], *(scalars(s + 1, 1.0, 2.0) for s in range(first, first + 20)))
    n.work(0.5)
    assert n.run.reductions["awaited"] <= 100
    early = n.curve("loss_ranks")
    assert n.run.reductions["pushed_out"] == len(early) + len(n.curve("acc_ranks")) >= 300
    assert sorted(early) == list(range(together, together + len(early))), "the oldest"


def test_damage_costs_a_row_and_holds_nothing(node: Callable[..., Node]) -> None:
    n = node(2)
    n.row(n.clients[0], scalars(0, 1.0, 2.0))
    n.work(0.5)
    n.journal.begin()
    n.journal.connection.execute(
        "UPDATE batches SET data = x'00' WHERE client_id = ?", n.clients[:1]
    )
    n.journal.commit()
    n.begin()
    n.row(n.clients[1], scalars(0, 3.0, 2.0))
    n.work(0.5)
    n.work(TIMEOUT_S)
    assert n.curve("loss_ranks") == {0: 1.0}
    assert not underived(n.run)


# --- values --------------------------------------------------------------------------------------

RNG = np.random.default_rng(5)


def histogram(data: Any, tag: str = "h", **info: Any) -> Value:
    arrays = [Array(str(data.dtype), data.shape, data.tobytes())]
    if "edges" in info:
        edges = np.asarray(info.pop("edges"), np.float64)
        info["bins"] = "edges"
        arrays.append(Array("float64", edges.shape, edges.tobytes()))
    return Value("histogram", tag, 3, 1, {"bins": None, **info}, arrays)


@pytest.mark.parametrize(
    "info", [{}, {"bins": 7}, {"bins": "auto"}, {"bins": "fd"}, {"edges": [-1.0, 0.0, 0.5, 9.0]}]
)
def test_a_histogram_is_that_of_the_concatenation(
    node: Callable[..., Node], info: dict[str, Any]
) -> None:
    n = node(3)
    data = [(RNG.normal(size=50 * (i + 1)) * (i + 1)).astype(np.float32) for i in range(3)]
    for rank in (2, 0, 1):
        n.row(n.clients[rank], part(histogram(data[rank], **info)))
    n.work()
    (found,) = [point for point in n.said() if isinstance(point, Value)]
    whole = np.concatenate(data)
    value = histogram(whole, **info)
    moments = moments_of(whole)
    edges = edges_of(value, whole, moments)
    counts = counts_of(whole, edges)
    limits, shown = (np.frombuffer(array.data) for array in found.arrays)
    full = np.flatnonzero(counts)
    np.testing.assert_array_equal(shown, counts[full[0] : full[-1] + 1])
    np.testing.assert_array_equal(limits, edges[full[0] : full[-1] + 2])
    assert (found.kind, found.tag, found.step) == ("histogram_counts", "h", 3)
    assert found.info == {
        "min": moments.low,
        "max": moments.high,
        "num": moments.num,
        "sum": moments.total,
        "sum_squares": moments.squares,
    }


def test_moments_in_any_order_are_the_same_and_those_of_the_whole(
    node: Callable[..., Node],
) -> None:
    x = RNG.normal(size=(40, 6)) + 3
    parts = [moments_value(x[i::4], tag="x", step=3) for i in range(4)]
    curves: list[dict[str, float]] = []
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
        n = node(4)
        for rank in order:
            n.row(n.clients[rank], part(parts[rank]))
        n.work()
        curves.append({tag: value for tag, _, value in n.numbers()})
        assert [p.kind for p in n.said() if isinstance(p, Value)] == ["spectrum", "histogram"]
    assert curves[0] == curves[1] == curves[2]
    whole = figures(decode(moments_value(x, tag="x", step=3)))
    together = figures(fold(merge, map(decode, parts)))
    for name, value in whole.items():
        assert curves[0][f"x_{name}"] == pytest.approx(value, rel=5e-5, abs=5e-6), name
        assert curves[0][f"x_{name}"] == pytest.approx(together[name], rel=1e-9, abs=1e-12), name
    assert curves[0]["x_n_rows"] == 40
    assert "x_ranks" not in curves[0]


def test_parameters_of_shards_add_up(node: Callable[..., Node]) -> None:
    n = node(2)
    shards = [parameters_value({"w": RNG.normal(size=30).astype(np.float32)}) for _ in range(2)]
    for rank in (1, 0):
        n.row(n.clients[rank], part(shards[rank]))
    n.work()
    (shown,) = [p for p in n.said() if isinstance(p, Value)]
    assert shown.info["num"] == 60.0


def test_a_part_that_is_malformed_costs_itself_and_is_marked(
    node: Callable[..., Node], capsys: pytest.CaptureFixture[str]
) -> None:
    n = node(3)
    good = moments_value(RNG.normal(size=(9, 4)), tag="x", step=3)
    wide = moments_value(RNG.normal(size=(9, 5)), tag="x", step=3)
    bad = Value("moments", "x", 3, 1, {"v": 1})
    for rank, value in enumerate((good, wide, bad)):
        n.row(n.clients[rank], part(value))
    n.row(n.clients[0], Value(RANK_PART, "y", 3, 1, {"kind": 5}))
    n.row(n.clients[0], part(Value("text", "z", 3, 1, {"text": "x"})))
    n.work()
    assert n.curve("x_n_rows") == {3: 9.0}
    assert n.curve("x_ranks") == {3: 1.0}
    said = capsys.readouterr().out
    assert "5 dimensions, and another rank's part has 4" in said
    assert "have no reduction" in said
    assert n.deriving.refused == 4

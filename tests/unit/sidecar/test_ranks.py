"""Who is whose world, which rank holds up the others, and rows without the parts of reductions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from sidestep.proto import Books, Hello, RunSpec, Scalars, ServerSession, Value
from sidestep.proto.records import encode_scalars, encode_value
from sidestep.proto.tag_sets import REDUCTIONS, ReducedTags, reduction_of
from sidestep.sidecar.control import stragglers
from sidestep.sidecar.ingest import worlds
from sidestep.sidecar.ingest.admission import why_not
from sidestep.sidecar.ingest.roster import NODE, ClientEntry, Limits
from sidestep.sidecar.journal.writer import ClientRow
from sidestep.sidecar.rows.points import MixedBlock, Points, ScalarBlock, read_points

SPEC = RunSpec("r", "/logs")


def rank(
    number: int,
    *,
    size: int = 4,
    attempt: int = 0,
    state: str = "live",
    world: int = 0,
    heard: float = 1000.0,
    step: int | None = None,
    step_s: float = 0.0,
    ident: int = 0,
) -> ClientEntry:
    """A client as ingest knows it."""
    row = ClientRow(ident or number + 1, b"u", 1, number, 0, 1, state, 0, 0, 0, 0, None)
    hello = Hello(b"u" * 16, 0, 0, SPEC, rank=number, world_size=size, attempt=attempt, host="node")
    session = ServerSession(1)
    session.books = Books(step=step, step_ns=round(step_s * 1e9))
    return ClientEntry(row, session, hello, SPEC, heard=heard, world=world)


# --- worlds --------------------------------------------------------------------------------------


def test_ranks_of_a_job_are_one_world() -> None:
    known = [rank(0, world=1)]
    for number in (1, 2, 3):
        entry = rank(number)
        entry.world = worlds.join(entry, known)
        known.append(entry)
    assert [entry.world for entry in known] == [1, 1, 1, 1]
    second_client_of_a_rank = rank(2, ident=9)
    assert worlds.join(second_client_of_a_rank, known) == 1


@pytest.mark.parametrize(
    ("entry", "known", "world"),
    [
        (rank(0), [], 1),
        (rank(0), [rank(0, world=1, state="lost")], 2),  # a job that is run again
        (rank(1), [rank(0, world=1, state="finished")], 1),  # a short one whose first rank ended
        (rank(1, heard=1100.0), [rank(0, world=1, state="finished")], 2),
        (rank(1, attempt=1), [rank(0, world=1)], 2),  # torchrun has restarted it
        (rank(1, size=2), [rank(0, world=1)], 2),  # with fewer ranks
        (rank(1), [rank(0, world=1, state="lost"), rank(0, world=2)], 2),
        (rank(2), [rank(2, world=1, state="lost"), rank(0, world=1)], 1),  # one rank alone
        (rank(0), [rank(0, world=0)], 1),  # of a journal that knew no worlds
    ],
)
def test_who_joins_which_world(entry: ClientEntry, known: list[ClientEntry], world: int) -> None:
    assert worlds.join(entry, known) == world


@pytest.mark.parametrize(
    ("number", "size", "code"), [(1, 2, None), (2, 2, "rank"), (5, 2, "rank"), (3, 1, None)]
)
def test_a_rank_beyond_its_world_would_count_as_one_that_is_awaited(
    number: int, size: int, code: str | None
) -> None:
    """A world of one is also what a client of before there were worlds says."""
    found = why_not(rank(number, size=size).hello, 0, Limits())
    assert (found and found.code) == code


# --- stragglers ----------------------------------------------------------------------------------


def told(*entries: ClientEntry) -> tuple[int, str] | None:
    found = stragglers.about(entries)["straggler"]
    return None if found is None else (found["rank"], found["reason"])


def test_a_slow_rank_is_told() -> None:
    fast = [rank(i, step=100, step_s=0.30) for i in range(3)]
    assert told(*fast, rank(3, step=100, step_s=0.41)) == (
        3,
        "takes 0.41 s a step, the others' median is 0.3 s",
    )
    assert told(*fast, rank(3, step=99, step_s=0.33)) is None
    assert told(rank(0, step=9, step_s=0.2), rank(1, step=9, step_s=0.5)) == (
        1,
        "takes 0.5 s a step, the others' median is 0.2 s",
    )


def test_a_rank_behind_is_told_before_one_that_is_slow() -> None:
    job = [rank(i, step=5000 + i, step_s=0.1) for i in range(3)]
    hangs = rank(3, step=4000, step_s=0.1)
    assert told(*job, hangs, rank(4, step=5000, step_s=0.2, size=5)) == (3, "is 1,000 steps behind")
    assert told(*job, rank(3, step=4980, step_s=0.1)) is None, "two seconds: heard of earlier"
    slow = [rank(i, step=50, step_s=10.0) for i in range(2)]
    assert told(*slow, rank(2, step=46, step_s=10.0)) == (2, "is 4 steps behind")


def test_only_living_ranks_of_the_newest_world_hold_up_others() -> None:
    old = [rank(i, world=1, step=9000, step_s=0.1, state="lost", ident=i + 1) for i in range(2)]
    new = [rank(i, world=2, step=100, step_s=0.1, ident=i + 10) for i in range(2)]
    dead = rank(2, world=2, step=5, step_s=0.1, state="lost", ident=20)
    node = rank(0, world=0, state=NODE, ident=30)
    unknown = rank(3, world=2, step=None, ident=40)
    found = stragglers.about([*old, *new, dead, node, unknown])
    assert found["straggler"] is None
    assert found["ranks"] == [
        {"rank": 0, "host": "node", "step": 100, "step_time_s": 0.1, "state": "live"},
        {"rank": 1, "host": "node", "step": 100, "step_time_s": 0.1, "state": "live"},
        {"rank": 2, "host": "node", "step": 5, "step_time_s": 0.1, "state": "lost"},
        {"rank": 3, "host": "node", "step": None, "step_time_s": None, "state": "live"},
    ]


def test_of_two_clients_of_a_rank_the_one_that_trains_speaks() -> None:
    entries = [rank(0, step=7, step_s=0.1, ident=1), rank(0, ident=2)]
    assert [one["step"] for one in stragglers.about(entries)["ranks"]] == [7]
    entries[0].row.state = "finished"
    entries[1].session.books = replace(entries[1].session.books, step=8)
    assert [one["step"] for one in stragglers.about(entries)["ranks"]] == [8]


def test_step_times_as_metrics() -> None:
    assert stragglers.step_times([rank(0)]) == {}
    assert stragglers.step_times([rank(0, step=1, step_s=0.5)]) == {"sidestep/step_time_s": 0.5}
    times = [0.1, 0.2, 0.6]
    found = stragglers.step_times(rank(i, step=1, step_s=s) for i, s in enumerate(times))
    assert found == {
        "sidestep/step_time_s": pytest.approx(0.3),
        "sidestep/step_time_s_std": pytest.approx(float(np.std(times))),
        "sidestep/step_time_s_min": 0.1,
        "sidestep/step_time_s_max": 0.6,
    }


# --- rows ----------------------------------------------------------------------------------------

TAG_SETS: dict[int, tuple[str, ...]] = {
    0: ("a",),
    1: ReducedTags(("a",), "mean"),
    2: ("b", "c"),
    3: ReducedTags(("b", "c"), "sum"),
    4: ReducedTags(("d",), "max"),
}


def flat(points: list[Points]) -> list[tuple[Any, ...]]:
    """Every record by itself."""
    found: list[tuple[Any, ...]] = []
    for point in points:
        if isinstance(point, Value):
            found.append(("value", point.tag))
            continue
        for block in point.alone() if isinstance(point, MixedBlock) else [point]:
            assert isinstance(block, ScalarBlock)
            for step, values in zip(block.steps.tolist(), block.values.tolist(), strict=True):
                found.append((reduction_of(block.tags), tuple(block.tags), step, tuple(values)))
    return found


@settings(max_examples=150, deadline=None)
@given(
    ids=st.lists(st.integers(0, 5), max_size=60)
    | st.lists(st.integers(0, 1), min_size=30, max_size=60),
    any_order=st.booleans(),
)
def test_a_row_gives_each_reader_its_own(ids: list[int], any_order: bool) -> None:
    records: list[bytes] = []
    plain: list[tuple[Any, ...]] = []
    parts: list[tuple[Any, ...]] = []
    for step, one in enumerate(ids):
        if one == 5:
            records.append(b"".join(encode_value(Value("text", f"t{step}", step, 1))[1]))
            for found in (plain, parts):
                found.append(("value", f"t{step}"))
            continue
        tags = TAG_SETS[one]
        values = tuple(float(step + i) for i in range(len(tags)))
        records.append(encode_scalars(Scalars(one, step, step, values)))
        reduce = reduction_of(tags)
        (parts if reduce else plain).append((reduce, tuple(tags), step, values))
    data = b"".join(records)
    found = flat(list(read_points(data, TAG_SETS, any_order=any_order)))
    assert (sorted(map(str, found)) if any_order else found) == (
        sorted(map(str, plain)) if any_order else plain
    )
    assert flat(list(read_points(data, TAG_SETS, reduced=True))) == parts


def test_every_reduction_has_a_name_on_the_wire() -> None:
    assert REDUCTIONS == ("mean", "sum", "min", "max", "spread")

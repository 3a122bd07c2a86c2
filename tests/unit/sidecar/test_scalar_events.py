"""Scalars to events: the bytes that protocol buffers would write, whichever way they are made."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from tensorboard.compat.proto.event_pb2 import Event

from sidestep.sidecar.rows.points import MixedBlock, ScalarBlock, wall_times_s
from sidestep.sidecar.sinks import event_layout, scalar_events
from sidestep.sidecar.sinks.event_file import record, version_record
from sidestep.sidecar.sinks.scalar_events import ScalarEvents
from tests.support.event_reader import block, events, scalars, scalars_of

# Shared cores are slow at times, and a clock is no part of what is tested here.
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

INT64 = st.integers(-(2**63), 2**63 - 1)
EDGES = [0, 1, 127, 128, 2**14 - 1, 2**14, 2**35, 2**56, 2**63 - 1, -1, -(2**63)]
TAGS = st.text(min_size=1, max_size=12) | st.sampled_from(["train/loss", "x" * 130, "損失/🙂"])


@st.composite
def blocks(draw: st.DrawFn) -> ScalarBlock:
    tags = draw(st.lists(TAGS, min_size=1, max_size=5))
    near = st.integers(0, 300) | st.sampled_from(EDGES)
    steps = draw(st.lists(near | INT64, min_size=1, max_size=6) | st.just([*range(110, 150)]))
    times = st.integers(1, 2**63 - 1)
    row = st.lists(st.floats(), min_size=len(tags), max_size=len(tags))
    return block(
        tags,
        steps,
        draw(st.lists(row, min_size=len(steps), max_size=len(steps))),
        draw(st.lists(times, min_size=len(steps), max_size=len(steps))),
    )


def protobuf_records(points: ScalarBlock) -> bytes:
    """What protocol buffers make of the block, one event a row."""
    out = []
    with np.errstate(all="ignore"):
        values = points.values.astype(np.float32)
    for step, time_ns, row in zip(points.steps, points.times_ns, values, strict=True):
        event: Any = Event(wall_time=wall_times_s(int(time_ns)), step=int(step))
        for tag, value in zip(points.tags, row, strict=True):
            event.summary.value.add(tag=tag, simple_value=value)
        out.append(record(event.SerializeToString()))
    return b"".join(out)


def records(points: ScalarBlock, encoder: ScalarEvents | None = None) -> bytes:
    return b"".join((encoder or ScalarEvents()).records(points))


@pytest.fixture(scope="module", params=["as it decides", "all joined", "all in tables"])
def way(request: pytest.FixtureRequest) -> Any:
    """Run a test over both ways in which records are made."""
    rows = {"all joined": 1 << 40, "all in tables": 1}.get(request.param)
    with pytest.MonkeyPatch.context() as patch:
        if rows is not None:
            patch.setattr(scalar_events, "_MIN_TABLE_ROWS", rows)
        yield


@pytest.mark.usefixtures("way")
@settings(calm, max_examples=60)
@given(blocks())
@example(block(["a"], EDGES * 2, [[0.0]] * 22))
@example(block(["a"], [*range(100, 200)], [[math.nan]] * 100))
@example(block(["a", "b"], [*range(16_380, 16_390)] * 3, [[-0.0, 1e39]] * 30))
def test_the_bytes_are_those_of_protocol_buffers(points: ScalarBlock) -> None:
    assert records(points) == protobuf_records(points)


@pytest.mark.usefixtures("way")
@settings(calm, max_examples=30)
@given(blocks(), st.data())
def test_the_bytes_do_not_depend_on_the_portions(points: ScalarBlock, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(points.steps)))
    encoder = ScalarEvents()
    parts = [
        ScalarBlock(points.tags, points.steps[rows], points.times_ns[rows], points.values[rows])
        for rows in (slice(0, cut), slice(cut, None))
    ]
    assert b"".join(records(part, encoder) for part in parts) == records(points)


def test_a_large_block_comes_in_order_and_in_small_portions() -> None:
    count, tags = 5000, [f"train/metric_{i}" for i in range(20)]
    values = np.random.default_rng(0).normal(size=(count, 20))
    points = block(tags, range(-2, count - 2), values)
    portions = [bytes(portion) for portion in ScalarEvents().records(points)]
    assert b"".join(portions) == protobuf_records(points)
    assert max(map(len, portions)) <= 256 << 10


def test_a_block_that_is_a_view_of_journal_rows(tmp_path: Path) -> None:
    table = np.arange(7 * 40, dtype=np.int64).reshape(40, 7)
    points = ScalarBlock(("a", "b", "c"), table[:, 2], table[:, 3], table[:, 4:].view(np.float64))
    assert records(points) == protobuf_records(points)


def test_no_rows_are_no_records() -> None:
    assert records(block(["a"], [], [])) == b""


ODD = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, 1e-300, 1e39, -1e308, 1 / 3, 2.0**-149]


@pytest.mark.usefixtures("way")
def test_odd_numbers_are_kept_as_float32_can(tmp_path: Path) -> None:
    points = block(["a", "b"], range(11), [[value, -value] for value in ODD])
    path = tmp_path / "events.out.tfevents.1.h.1.0"
    path.write_bytes(version_record(1.0) + records(points))
    ours, theirs = scalars(path), scalars_of([points])
    assert [item[:2] for item in ours] == [item[:2] for item in theirs]
    np.testing.assert_array_equal([item[2] for item in ours], [item[2] for item in theirs])
    assert ours[2 * 7][2] == math.inf
    assert math.copysign(1, ours[2 * 4][2]) == -1


def test_a_row_is_one_event_with_its_own_time(tmp_path: Path) -> None:
    points = block(["a", "b"], [5, 5, 4], [[1, 2], [3, 4], [5, 6]], [10**9, 3 * 10**9, 2 * 10**9])
    path = tmp_path / "events.out.tfevents.1.h.1.0"
    path.write_bytes(version_record(1.0) + records(points))
    read = events(path)[1:]
    assert [(event.wall_time, event.step) for event in read] == [(1, 5), (3, 5), (2, 4)]
    assert [[value.simple_value for value in e.summary.value] for e in read] == [
        [1, 2], [3, 4], [5, 6],
    ]  # fmt: skip


def test_a_tag_that_is_no_text_does_not_stop_the_others() -> None:
    assert b"a?b" in records(block(["a\ud800b"], [1], [[1.0]]))


@st.composite
def mixed_blocks(draw: st.DrawFn) -> MixedBlock:
    tag_sets = draw(st.lists(st.lists(TAGS, min_size=1, max_size=4), min_size=1, max_size=5))
    rows = draw(st.lists(st.integers(0, len(tag_sets) - 1), min_size=1, max_size=20))
    steps = st.lists(
        st.integers(0, 300) | st.sampled_from(EDGES) | INT64,
        min_size=len(rows),
        max_size=len(rows),
    )
    count = sum(len(tag_sets[row]) for row in rows)
    return MixedBlock(
        tuple(map(tuple, tag_sets)),
        np.array(rows, np.int64),
        np.array(draw(steps), np.int64),
        np.arange(1, 1 + len(rows), dtype=np.int64) * 10**8,
        np.array(draw(st.lists(st.floats(), min_size=count, max_size=count)), np.float64),
    )


@pytest.mark.usefixtures("way")
@settings(calm, max_examples=60)
@given(st.lists(blocks() | mixed_blocks(), max_size=6))
def test_gathered_blocks_have_the_bytes_of_each_alone(
    some: list[ScalarBlock | MixedBlock],
) -> None:
    alone = [
        one
        for points in some
        for one in (points.alone() if isinstance(points, MixedBlock) else (points,))
    ]
    expected = b"".join(protobuf_records(one) for one in alone)
    assert bytes(ScalarEvents().gathered(some)) == expected


def test_layouts_are_forgotten_before_they_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_layout, "_MAX_CACHED_BYTES", 1 << 18)
    for count, tags in ((500, 1), (100, 40)):
        blocks = [
            block(
                [f"train/{i}/{k}/{'x' * 20}" for k in range(tags)], [i, i + 300], np.ones((2, tags))
            )
            for i in range(count)
        ]
        tracemalloc.start()
        encoder = ScalarEvents()
        for points in blocks:
            assert records(points, encoder) == records(points)
            encoder.gathered([points] * 10)  # makes a template of it
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 1 << 16 < encoder.layouts.nbytes <= 1 << 18
        assert held < 1.1 * encoder.layouts.nbytes + 20_000, "they take more than they say"


def test_of_more_layouts_than_there_is_room_for_some_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = 0

    class Counted(event_layout.Layout):
        def __init__(self, tags: tuple[str, ...]) -> None:
            nonlocal made
            made += 1
            super().__init__(tags)

    monkeypatch.setattr(event_layout, "Layout", Counted)
    layouts = event_layout.Layouts()
    tag_sets = [(f"m{n}",) for n in range(1000)]
    monkeypatch.setattr(
        event_layout, "_MAX_CACHED_BYTES", 800 * event_layout.Layout(tag_sets[0]).nbytes
    )
    for _ in range(20):
        for tags in tag_sets:
            assert layouts.of(tags).summary == event_layout.Layout(tags).summary
    made -= 20_000  # those that were compared with
    assert made < 0.8 * 20_000

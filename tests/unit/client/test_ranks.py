"""What of a rank's values travels, under which tags, and who it says that it is."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sidestep import client as sidestep
from sidestep.client import ranks as ranks_module
from sidestep.client.outbox import Outbox
from sidestep.client.settings import generated_name_of
from sidestep.client.sorting import Sorter
from sidestep.client.step_time import StepTime
from sidestep.proto import Tags, Value
from sidestep.proto.tag_sets import RANK_PART, ReducedTags, definitions, reduction_of
from tests.unit.client.conftest import MakeClient
from tests.unit.client.emitted import numbers, rows, values
from tests.unit.client.fake_device import FakeDevice, FakeTensor

REDUCTIONS = ("mean", "sum", "min", "max", "spread")


def tag_sets(client: sidestep.Client) -> list[tuple[str, tuple[str, ...]]]:
    """How each of the tag sets is reduced, and its tags."""
    return [(reduction_of(tags), tuple(tags)) for tags in client._memory.layout.tag_sets()]


def mixed(x: Any) -> dict[str, Any]:
    """Something of everything."""
    return {
        "loss": 1.0,
        "on_host": torch.tensor(2.0),
        "scalar": np.float32(3.0),
        "rep": sidestep.Representation(x),
        "hist": sidestep.Histogram(x),
        "text": sidestep.Text("x"),
    }


def described(records: list[Value]) -> list[tuple[str, str, object]]:
    """Kind and tag of each, and of a part what it is a part of."""
    return [(v.kind, v.tag, v.info.get("kind")) for v in records]


def test_other_ranks_send_what_is_reduced_and_representations(connect: MakeClient) -> None:
    x = torch.randn(8, 4)
    client = connect(rank=1, world_size=2, outbox_bytes=4 << 20)
    client.emit(mixed(x), step=1)
    assert numbers(client) == []
    assert described(values(client)) == [(RANK_PART, "rep", "moments")]
    client.emit(mixed(x), step=2, reduce="mean")
    assert numbers(client) == [{"loss": 1.0, "on_host": 2.0, "scalar": 3.0}]
    assert tag_sets(client) == [("mean", ("loss", "on_host", "scalar"))]
    assert described(values(client))[1:] == [
        (RANK_PART, "rep", "moments"),
        (RANK_PART, "hist", "histogram"),
    ]
    assert values(client)[2].info == {
        "kind": "histogram",
        "info": {"bins": None},
        "reduce": "mean",
    }
    assert client.stats().rejected == 1  # the text


def test_a_silent_rank_looks_at_no_number_of_a_step(
    connect: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not cost more than where the numbers are written."""
    client = connect(rank=1, world_size=2)
    looked: list[object] = []
    monkeypatch.setattr(Sorter, "_pairs", lambda _, values, __: looked.append(values) or [])
    client.emit({"a": 1.0, "b": 2, "c": True}, step=5)
    assert looked == []
    client.emit({"a": 1.0, "b": torch.tensor(2.0)}, step=5)
    assert len(looked) == 1
    assert client._last_step == 5


def test_a_silent_rank_counts_steps_and_rejects_nothing(connect: MakeClient) -> None:
    client = connect(rank=1, world_size=2)
    for _ in range(3):
        client.emit({"a": 1.0, "b": object(), 3: sidestep.Text("x")})  # type: ignore[dict-item]
    assert (client.stats().emitted, client.stats().rejected, client._last_step) == (0, 0, 2)


def test_rank_zero_sends_what_is_not_reduced_too(connect: MakeClient) -> None:
    client = connect(rank=0, world_size=2, outbox_bytes=4 << 20)
    client.emit(mixed(torch.randn(8, 4)), step=1)
    assert tag_sets(client) == [("", ("loss", "on_host", "scalar"))]
    assert described(values(client)) == [
        (RANK_PART, "rep", "moments"),
        ("histogram", "hist", None),
        ("text", "text", None),
    ]


def test_with_all_ranks_only_what_is_not_reduced_has_the_rank_before_it(
    connect: MakeClient,
) -> None:
    client = connect(rank=3, world_size=4, ranks="all", outbox_bytes=4 << 20)
    client.emit(mixed(torch.randn(8, 4)), step=1)
    client.emit({"loss": 1.0}, step=1, reduce="max")
    client.emit({"hist": sidestep.Histogram([1.0])}, step=1, reduce="sum")
    plain = tuple(f"rank_3/{tag}" for tag in ("loss", "on_host", "scalar"))
    assert tag_sets(client) == [("", plain), ("max", ("loss",))]
    assert [(v.kind, v.tag) for v in values(client)] == [
        (RANK_PART, "rep"),
        ("histogram", "rank_3/hist"),
        ("text", "rank_3/text"),
        (RANK_PART, "hist"),
    ]


def test_one_rank_makes_no_parts(connect: MakeClient) -> None:
    client = connect(rank=0, world_size=1, outbox_bytes=4 << 20)
    client.emit(mixed(torch.randn(8, 4)), step=1, reduce="mean")
    assert [v.kind for v in values(client)] == ["moments", "histogram", "text"]
    assert client.stats().rejected == 0


def test_a_value_that_cannot_be_reduced_costs_itself_alone(
    connect: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(rank=0, world_size=2)
    client.emit({"a": 1.0, "t": sidestep.Text("x"), "b": 2.0}, step=1, reduce="mean")
    assert numbers(client) == [{"a": 1.0, "b": 2.0}]
    assert values(client) == []
    assert "Text cannot be reduced over ranks: expected numbers, Histogram" in caplog.text
    assert client.stats().rejected == 1


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("rank", [0, 1])
def test_numbers_take_the_short_way(
    connect: MakeClient, monkeypatch: pytest.MonkeyPatch, reduce: Any, rank: int
) -> None:
    client = connect(rank=rank, world_size=2)
    client.emit({"a": 1.0, "b": 2}, step=1, reduce=reduce)

    def never(*_: Any) -> None:
        raise AssertionError("the long way")

    monkeypatch.setattr(Outbox, "put_row", never)
    client.emit({"a": 3.0, "b": math.nan}, step=2, reduce=reduce)
    client.emit({"a": 10**400, "b": 0}, step=3, reduce=reduce)  # the long way says what is wrong
    assert [row.step for row in rows(client)] == [1, 2]
    assert tag_sets(client) == [(reduce, ("a", "b"))]
    assert client._last_step == 3


def test_plain_and_reduced_numbers_of_one_tag_are_two_tag_sets(connect: MakeClient) -> None:
    client = connect(rank=0, world_size=2)
    for step in range(2):
        client.emit({"a": 1.0}, step=step)
        client.emit({"a": 2.0}, step=step, reduce="mean")
        client.emit({"a": 3.0}, step=step, reduce="sum")
    assert tag_sets(client) == [("", ("a",)), ("mean", ("a",)), ("sum", ("a",))]
    assert [row.numbers["a"] for row in rows(client)] == [1.0, 2.0, 3.0] * 2


def test_all_ranks_agree_on_which_spectra_have_room(connect: MakeClient) -> None:
    """Whatever outbox a rank has: the matrices of one rank alone would be good for nothing."""
    due: list[object] = []
    for rank in (0, 1):
        client = connect(rank=rank, world_size=2, outbox_bytes=64 << 20)
        client.emit({"x": sidestep.Representation(torch.randn(4, 3, 1280))}, step=1)
        client.emit({"y": sidestep.Representation(torch.randn(4, 3, 1400))}, step=1)
        parts: list[Any] = values(client)
        due.append([part.info["info"]["due"] for part in parts])
    assert due == [[True, False]] * 2


def test_definitions_part_the_reduced_from_the_plain() -> None:
    sets = [("a",), ("b",), ReducedTags(("a",), "mean"), ReducedTags(("a",), "sum"), ("c",)]
    said = list(definitions(sets, 0))
    assert [(m.first_id, len(m.tag_sets)) for m in said] == [(0, 2), (2, 2), (4, 1)]
    assert list(definitions(sets, 3)) == [Tags(3, (sets[3],)), Tags(4, (sets[4],))]


# --- who it is --------------------------------------------------------------------------------


def set_up(monkeypatch: pytest.MonkeyPatch, **said: Any) -> None:
    """As torch.distributed would say."""
    distributed = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "get_rank": lambda: 2,
        "get_world_size": lambda: 5,
        **said,
    }
    monkeypatch.setitem(sys.modules, "torch.distributed", SimpleNamespace(**distributed))  # type: ignore[arg-type]


def test_torch_distributed_says_who_it_is(
    connect: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(monkeypatch)
    hello = connect()._memory.layout.hello()
    assert (hello.rank, hello.world_size) == (2, 5)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    hello = connect()._memory.layout.hello()
    assert (hello.rank, hello.world_size) == (1, 3)
    hello = connect(rank=0, world_size=2)._memory.layout.hello()
    assert (hello.rank, hello.world_size) == (0, 2)


@pytest.mark.parametrize("broken", ["is_available", "is_initialized", "get_rank"])
def test_a_torch_distributed_that_fails_says_nothing(
    connect: MakeClient, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fails() -> bool:
        raise RuntimeError("Default process group has not been initialized")

    set_up(monkeypatch, **{broken: fails})
    assert connect()._memory.layout.hello().world_size == 1


def test_ranks_of_one_job_choose_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "WORLD_SIZE": "2"}
    here = {**job, "LOCAL_WORLD_SIZE": "2"}
    names = [generated_name_of(ranks_module.common_name({**here, "RANK": r})) for r in "01"]
    assert names[0] == names[1] is not None
    monkeypatch.setattr(ranks_module, "_started", lambda _pid: "12345")
    assert generated_name_of(ranks_module.common_name(here)) != names[0], "another launch"
    assert ranks_module.common_name({"RANK": "0"}) is generated_name_of(None) is None
    over_nodes = ranks_module.common_name(job)
    monkeypatch.setattr(ranks_module, "_started", lambda _pid: "99")
    assert ranks_module.common_name(job) == over_nodes


# --- step time --------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


def watched(steps: list[tuple[float, int]]) -> float:
    """Seconds per step, after these (time in s, newest step)."""
    clock = Clock()
    found = StepTime(clock)
    for seconds, step in steps:
        clock.ns = round(seconds * 1e9)
        found.look(step)
    return found.mean_ns / 1e9


def test_step_time_of_fast_and_of_slow_steps() -> None:
    assert watched([(i / 40, i // 4) for i in range(200)]) == pytest.approx(0.1, rel=0.02)
    assert watched([(i / 20, 500 * (i // 50)) for i in range(400)]) == pytest.approx(0.005)
    assert watched([(i / 20, i // 100) for i in range(1000)]) == pytest.approx(5.0)
    assert watched([(0.0, 5), (0.5, 6)]) == 0.0, "not known yet"


def test_lower_steps_are_left_aside_until_nothing_goes_further() -> None:
    training = [(i / 20, 1000 + i // 2) for i in range(100)]
    beside = [(seconds + 0.01, 3) for seconds, _ in training]
    assert watched(sorted(training + beside)) == pytest.approx(0.1, rel=0.05)
    again = [(100 + i / 20, i // 10) for i in range(200)]
    assert watched(training + again) == pytest.approx(0.5, rel=0.05)


def test_a_step_that_stands_still_changes_nothing() -> None:
    steps = [(i / 20, i // 2) for i in range(100)]
    assert watched(steps + [(5 + i, 49) for i in range(50)]) == pytest.approx(0.1, rel=0.05)


def test_books_tell_step_and_step_time(connect: MakeClient) -> None:
    client = connect(rank=1, world_size=2)
    assert client._books().step is None
    client.emit({"a": 1.0}, step=7)
    client._steps.mean_ns = 12
    assert (client._books().step, client._books().step_ns) == (7, 12)


# --- on a device ------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_reduced_may_lie_on_a_device(connect: MakeClient, rank: int) -> None:
    device = FakeDevice()
    client = connect(rank=rank, world_size=2, outbox_bytes=1 << 20)
    client._stages._make_device = lambda _: device
    reduced = {"a": FakeTensor(0.5), "h": sidestep.Histogram(FakeTensor([1.0, 2.0]))}
    client.emit(reduced, step=1, reduce="sum")
    client.emit({"b": FakeTensor(2.0)}, step=2)
    device.finish()
    client.flush(0)
    plain = [("", ("b",))] if rank == 0 else []
    assert sorted(tag_sets(client)) == [*plain, ("sum", ("a",))]
    assert described(values(client)) == [(RANK_PART, "h", "histogram")]


def test_a_spread_of_one_rank_may_lie_on_a_device(connect: MakeClient) -> None:
    device = FakeDevice()
    client = connect(outbox_bytes=1 << 20)
    client._stages._make_device = lambda _: device
    client.emit({"a": FakeTensor(0.5)}, step=1, reduce="spread")
    device.finish()
    client.flush(0)
    assert numbers(client) == [{"a": 0.5, "a_std": 0.0, "a_min": 0.5, "a_max": 0.5}]

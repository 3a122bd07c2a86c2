"""What `emit` takes, what it makes of it, and what it refuses without a word to the trainer."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from sidestep import client as sidestep
from sidestep.client import InvalidValueError
from sidestep.client.values import EmitContext, Prepared
from sidestep.proto.limits import MAX_SEQ
from sidestep.proto.tag_sets import reduction_of
from tests.unit.client.conftest import MakeClient
from tests.unit.client.emitted import numbers, rows, values

# --- numbers -----------------------------------------------------------------------------------

NUMBERS: list[tuple[Any, float]] = [
    (1.5, 1.5),
    (3, 3.0),
    (True, 1.0),
    (-0.0, -0.0),
    (math.inf, math.inf),
    (-math.inf, -math.inf),
    (5e-324, 5e-324),
    (2**1000, float(2**1000)),
    (np.float32(0.1), float(np.float32(0.1))),
    (np.float64(0.1), 0.1),
    (np.float16(0.5), 0.5),
    (np.longdouble(0.25), 0.25),
    (np.int64(-7), -7.0),
    (np.uint64(2**64 - 1), float(2**64 - 1)),
    (np.bool_(True), 1.0),
    (np.array(2.5), 2.5),
    (torch.tensor(1.25), 1.25),
    (torch.tensor(3), 3.0),
    (torch.tensor(True), 1.0),
    (torch.tensor(1e-8, dtype=torch.bfloat16), float(torch.tensor(1e-8, dtype=torch.bfloat16))),
    (torch.tensor(2.0, requires_grad=True), 2.0),
    (torch.nn.Parameter(torch.tensor(4.0)), 4.0),
]


@pytest.mark.parametrize("times", [1, 3], ids=["the long way", "and the short one"])
@pytest.mark.parametrize(("value", "expected"), NUMBERS, ids=repr)
def test_a_number_arrives_as_float64(
    connect: MakeClient, value: Any, expected: float, times: int
) -> None:
    client = connect()
    for _ in range(times):
        client.emit({"a": value, "b": 1.0}, step=1)
    assert numbers(client) == [{"a": expected, "b": 1.0}] * times
    assert client.stats().rejected == 0


def test_nan_stays_nan_and_minus_zero_negative(connect: MakeClient) -> None:
    client = connect()
    for _ in range(2):
        client.emit({"nan": math.nan, "zero": -0.0}, step=1)
    for found in numbers(client):
        assert math.isnan(found["nan"])
        assert math.copysign(1, found["zero"]) == -1


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    emits=st.lists(
        st.dictionaries(
            st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
            st.floats(allow_nan=False) | st.integers(-(2**60), 2**60) | st.booleans(),
            min_size=1,
            max_size=6,
        ),
        min_size=1,
        max_size=8,
    )
)
def test_any_numbers_under_any_tags(connect: MakeClient, emits: list[dict[str, float]]) -> None:
    client = connect()
    for step, given_values in enumerate(emits):
        client.emit(given_values, step=step)
    assert numbers(client) == [{tag: float(v) for tag, v in given.items()} for given in emits]
    assert [row.step for row in rows(client)] == list(range(len(emits)))
    client.finish(0)


@pytest.mark.parametrize("kind", [OrderedDict, defaultdict, UserDict], ids=lambda k: k.__name__)
def test_any_mapping_will_do(connect: MakeClient, kind: type) -> None:
    given_values = kind(float) if kind is defaultdict else kind()
    given_values["a"] = 1.0
    client = connect()
    client.emit(given_values, step=1)
    client.emit(given_values, step=2)
    assert numbers(client) == [{"a": 1.0}] * 2


class Tag(str):
    """A tag of somebody's own, with a hash and an equality that do not fit together."""

    __slots__ = ()

    def __hash__(self) -> int:
        raise RuntimeError("hash")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("equality")


class PlainTag(str):
    __slots__ = ()


def test_a_subclass_of_str_is_a_tag(connect: MakeClient) -> None:
    client = connect()
    client.emit({PlainTag("a"): 1.0}, step=1)
    assert numbers(client) == [{"a": 1.0}]
    assert type(client._outbox.tag_sets.stored[0][0]) is str


def test_an_empty_emit_is_nothing(connect: MakeClient) -> None:
    client = connect()
    client.emit({}, step=4)
    client.emit({"a": 1.0})
    assert [row.step for row in rows(client)] == [5]
    assert client.stats().emitted == 1


# --- many tags ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(4096, 6, 1), (4097, 6, 2), (9000, 6, 3), (300, 1024, 2), (257, 1000, 1)],
)
def test_more_tags_than_a_record_has_room_for(
    connect: MakeClient, count: int, size: int, expected: int
) -> None:
    client = connect(outbox_bytes=32 << 20)
    given_values = {f"{i:0{size}}": float(i) for i in range(count)}
    for step in (1, 2):
        client.emit(given_values, step=step)
    found = numbers(client)
    assert len(found) == 2 * expected
    assert {tag: v for numbers in found[:expected] for tag, v in numbers.items()} == given_values
    assert found[:expected] == found[expected:]


def test_a_small_outbox_splits_what_is_too_long_for_it(connect: MakeClient) -> None:
    client = connect()  # its segments are of one page
    client.emit({str(i): float(i) for i in range(1200)}, step=1)
    found = numbers(client)
    assert len(found) == 3
    assert sum(map(len, found)) == 1200
    assert client.stats().dropped == 0


def test_ever_new_combinations_of_tags_go_on_one_by_one(connect: MakeClient) -> None:
    client = connect()
    tags = [f"metric/{i:03}" for i in range(60)]
    emitted: list[dict[str, float]] = []
    draw = random.Random(1)
    for step in range(200):
        chosen = dict.fromkeys(draw.sample(tags, 12), float(step))
        client.emit(chosen, step=step)
        emitted.append(chosen)
    assert client.stats().rejected == 0
    by_step: dict[int, dict[str, float]] = {}
    for row in rows(client):
        by_step.setdefault(row.step, {}).update(row.numbers)
    assert list(by_step.values()) == emitted
    assert any(len(names) == 1 for names in client._outbox.tag_sets.stored)


def test_too_many_tags_are_counted_and_the_known_ones_go_on(
    connect: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect()
    client.emit({"known": 1.0}, step=0)
    for i in range(3000):
        client.emit({f"tag/{i:06}": 1.0}, step=i)
    stats = client.stats()
    assert 0 < stats.rejected < 3000
    assert stats.emitted + stats.rejected == 3001
    client.emit({"known": 2.0, f"tag/{2999:06}": 2.0}, step=5000)
    assert numbers(client)[-1] == {"known": 2.0}
    assert client.stats().rejected == stats.rejected + 1
    assert "no room for more tags" in caplog.text
    assert len(caplog.records) <= 101  # the rest is only counted


# --- what is refused ---------------------------------------------------------------------------


class Unprintable:
    """Nobody may ask it how it looks."""

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    __str__ = __repr__


class Evil:
    """Fails wherever it is looked at."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"attribute {name}")

    def __repr__(self) -> str:
        raise RuntimeError("repr")


class FailingValue(sidestep.Value):
    kind = "failing"

    def prepare(self, context: EmitContext) -> Prepared:
        raise UnprintableError


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("str")


REFUSED: list[tuple[Any, str]] = [
    ("text", "str is no value: expected int, float, bool, a numpy scalar, a 0-d tensor"),
    (None, "NoneType is no value"),
    (1j, "complex is no value"),
    (Decimal(1), "Decimal is no value"),
    (Fraction(1, 2), "Fraction is no value"),
    ([1.0], "list is no value"),
    (2**2000, "an integer beyond the range of float64"),
    (10**5000, "an integer beyond the range of float64"),
    (np.zeros(3), "array of shape (3,): emit a scalar or a Histogram"),
    (np.complex64(1), "complex is no value"),
    (np.str_("x"), "str is no value"),
    (np.datetime64("2024-01-01"), "date is no value"),
    (torch.zeros(2, 2), "tensor of shape (2, 2): emit a 0-d tensor or a Histogram"),
    (torch.tensor(1j), "complex tensor: emit its .abs(), .real or .imag"),
    (torch.tensor(1.0, device="meta"), "NotImplementedError: "),
    (Unprintable(), "Unprintable is no value"),
    (Evil(), "RuntimeError: attribute detach"),
    (FailingValue(), "UnprintableError: an error that cannot be shown"),
    (sidestep.Image, "ABCMeta is no value"),
    (sidestep.Histogram([]), "Histogram of an empty tensor"),
    (sidestep.Histogram(["a"]), "Histogram of dtype <U1: expected real numbers"),
    (sidestep.Histogram(np.zeros(1 << 20)), "histogram of 8388608 bytes: this outbox takes up to"),
    (sidestep.Image(np.zeros((2, 2, 2, 2))), "Image of shape (2, 2, 2, 2)"),
    (sidestep.Text("x" * (1 << 20)), "Text of 1048576 bytes: at most 524288"),
    (sidestep.Text("x" * (300 << 10)), "text of 307"),
    (sidestep.Representation(torch.zeros(1, 4)), "Representation of 1 row"),
]


@pytest.mark.parametrize(("value", "reason"), REFUSED, ids=lambda x: type(x).__name__)
def test_a_bad_value_harms_only_itself(
    connect: MakeClient, caplog: pytest.LogCaptureFixture, value: Any, reason: str
) -> None:
    client = connect()
    for step in (1, 2):
        text = sidestep.Text("hello")
        client.emit({"before": 1.0, "bad": value, "after": 2.0, "text": text}, step=step)
    assert numbers(client) == [{"before": 1.0, "after": 2.0}] * 2
    assert [record.tag for record in values(client)] == ["text", "text"]
    assert client.stats().rejected == 2
    (record,) = caplog.records  # said once
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"sidestep: rejected 'bad': {reason}")


@pytest.mark.parametrize(("value", "reason"), REFUSED, ids=lambda x: type(x).__name__)
def test_strict_raises_after_everything_else_was_handed_over(
    connect: MakeClient, value: Any, reason: str
) -> None:
    client = connect(strict=True)
    with pytest.raises(InvalidValueError) as raised:
        client.emit({"before": 1.0, "bad": value, "after": 2.0}, step=1)
    assert str(raised.value).startswith(f"'bad': {reason}")
    assert numbers(client) == [{"before": 1.0, "after": 2.0}]
    assert client.stats().rejected == 1


TAGS: list[tuple[Any, str]] = [
    ("", "a tag must be a non-empty str, not ''"),
    (7, "a tag must be a non-empty str, not 7"),
    (None, "a tag must be a non-empty str, not None"),
    (b"a", "a tag must be a non-empty str, not b'a'"),
    (("a",), "a tag must be a non-empty str, not <tuple>"),
    ("\ud800", "a tag must be valid Unicode text"),
    ("x" * 1025, "a tag of 1025 bytes: at most 1024"),
    ("é" * 513, "a tag of 1026 bytes: at most 1024"),
    (Unprintable(), "a tag must be a non-empty str, not <Unprintable>"),
]


@pytest.mark.parametrize(("tag", "reason"), TAGS, ids=lambda x: type(x).__name__)
def test_a_bad_tag_harms_only_itself(
    connect: MakeClient, caplog: pytest.LogCaptureFixture, tag: Any, reason: str
) -> None:
    client = connect()
    client.emit({"good": 1.0, tag: 2.0}, step=1)
    client.emit({tag: sidestep.Text("x")}, step=1)
    assert numbers(client) == [{"good": 1.0}]
    assert client.stats().rejected == 2
    assert reason in caplog.text


@pytest.mark.parametrize("tag", ["x" * 1024, "é" * 512, "../../etc", "a\0b", "a\nb", "😀", " "])
def test_an_odd_tag_is_a_tag(connect: MakeClient, tag: str) -> None:
    client = connect()
    client.emit({tag: 1.0}, step=1)
    client.emit({tag: sidestep.Text("x")}, step=1)
    assert numbers(client) == [{tag: 1.0}]
    assert values(client)[0].tag == tag


class Lazy(Mapping[str, float]):
    """Computes its values, and fails at one of them."""

    def __init__(self, error: Exception, *, at: str) -> None:
        self._error = error
        self._at = at

    def __getitem__(self, tag: str) -> float:
        if self._at == tag:
            raise self._error
        return 1.0

    def __iter__(self) -> Iterator[str]:
        if self._at == "iter":
            raise self._error
        return iter(["a", "b", "c"])

    def __len__(self) -> int:
        if self._at == "len":
            raise self._error
        return 3


class LazyDict(dict[str, float]):
    def values(self) -> Any:
        raise RuntimeError("values")

    items = values


@pytest.mark.parametrize("error", [RuntimeError("boom"), InvalidValueError("boom")], ids=repr)
def test_a_mapping_that_fails(connect: MakeClient, error: Exception) -> None:
    client = connect()
    client.emit(Lazy(error, at="b"), step=1)
    assert numbers(client) == [{"a": 1.0, "c": 1.0}]
    client.emit(Lazy(error, at="iter"), step=1)
    client.emit(Lazy(error, at="len"), step=1)
    client.emit(Lazy(error, at="len"), step="x")  # type: ignore[arg-type]
    assert client.stats().rejected == 4
    client.emit(LazyDict(a=1.0), step=2)
    assert client.stats().rejected == 4
    assert numbers(client)[-1] == {"a": 1.0}


@pytest.mark.parametrize("values", [None, 3, "abc", [("a", 1.0)], {"a"}])
def test_what_is_no_mapping(
    connect: MakeClient, caplog: pytest.LogCaptureFixture, values: Any
) -> None:
    client = connect()
    client.emit(values, step=1)
    client.emit(values)
    assert client.stats().rejected == 2
    assert "takes a mapping of tag to value" in caplog.text


# --- step, wall time, reduce -------------------------------------------------------------------


def test_without_a_step_it_is_the_last_one_plus_one(connect: MakeClient) -> None:
    client = connect()
    for step in (None, None, 40, None, None, -3, None, np.int32(8), None, torch.tensor(9), True):
        client.emit({"a": 1.0}, step=step)  # type: ignore[arg-type]
    assert [row.step for row in rows(client)] == [0, 1, 40, 41, 42, -3, -2, 8, 9, 9, 1]


@pytest.mark.parametrize("step", [0, -1, MAX_SEQ, -MAX_SEQ - 1, 2**40])
def test_any_64_bit_step(connect: MakeClient, step: int) -> None:
    client = connect()
    for _ in range(2):
        client.emit({"a": 1.0, "b": 2}, step=step)
    assert [row.step for row in rows(client)] == [step, step]


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (MAX_SEQ + 1, "does not fit into 64 bits"),
        (-MAX_SEQ - 2, "does not fit into 64 bits"),
        (10**5000, "does not fit into 64 bits"),
        (1.0, "step must be an int, not float"),
        ("1", "step must be an int, not str"),
        (torch.tensor(1.5), "step must be an int"),
        (torch.tensor(1, device="meta"), "step is a tensor on a device"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_bad_step_is_refused_and_forgotten(
    connect: MakeClient, caplog: pytest.LogCaptureFixture, step: Any, reason: str
) -> None:
    client = connect()
    client.emit({"a": 1.0, "b": 1.0}, step=6)
    client.emit({"a": 1.0, "b": 1.0}, step=step)
    client.emit({"a": 1.0, "b": 1.0})
    assert [row.step for row in rows(client)] == [6, 7]
    assert client.stats().rejected == 2  # both of its values
    assert reason in caplog.text


def test_after_the_last_step_there_is_none(connect: MakeClient) -> None:
    client = connect()
    client.emit({"a": 1.0}, step=MAX_SEQ)
    client.emit({"a": 1.0})
    client.emit({"a": 1.0}, step=1)
    client.emit({"a": 1.0})
    assert [row.step for row in rows(client)] == [MAX_SEQ, 1, 2]
    assert client.stats().rejected == 1


def test_a_value_is_put_once_though_the_step_is_looked_at_twice(connect: MakeClient) -> None:
    client = connect()
    client.emit({"text": sidestep.Text("x"), "a": 1.0}, step=MAX_SEQ + 1)
    assert client.stats().emitted == 0
    assert client.stats().rejected == 2


def test_the_time_is_now_or_what_was_said(connect: MakeClient) -> None:
    client = connect()
    before = time.time_ns()
    client.emit({"a": 1.0}, step=1)
    client.emit({"a": 1.0}, step=2)
    after = time.time_ns()
    for wall_time in (0, 1.5, 1_700_000_000, np.float64(2.5)):
        client.emit({"a": 1.0}, step=3, wall_time=wall_time)
    times = [row.time_ns for row in rows(client)]
    assert before <= times[0] <= times[1] <= after
    assert times[2:] == [0, 1_500_000_000, 1_700_000_000 * 10**9, 2_500_000_000]


@pytest.mark.parametrize("wall_time", [-1, math.nan, math.inf, 1e10, "now", 2**70])
def test_a_bad_time_is_refused(
    connect: MakeClient, caplog: pytest.LogCaptureFixture, wall_time: Any
) -> None:
    client = connect()
    client.emit({"a": 1.0}, step=1, wall_time=wall_time)
    assert client.stats().rejected == 1
    assert "wall_time must be seconds since the epoch" in caplog.text


@pytest.mark.parametrize("reduce", ["mean", "sum", "min", "max", "spread"])
def test_with_one_rank_reducing_is_nothing(connect: MakeClient, reduce: Any) -> None:
    client = connect()
    beside = {"a_std": 0.0, "a_min": 1.0, "a_max": 1.0} if reduce == "spread" else {}
    for _ in range(2):  # the long way, and the short one
        client.emit({"a": 1.0}, step=1, reduce=reduce)
    client.emit({"a": 1.0}, step=1, reduce=reduce, wall_time=1.0)
    assert numbers(client) == [{"a": 1.0, **beside}] * 3
    assert not any(map(reduction_of, client._memory.layout.tag_sets()))


def test_what_cannot_be_reduced_is_refused(
    connect: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect()
    client.emit({"a": 1.0}, step=1, reduce="median")  # type: ignore[arg-type]
    client.emit({"a": 1.0}, step=1, reduce=[1])  # type: ignore[arg-type]
    assert "reduce must be mean, sum, min, max or spread, not 'median'" in caplog.text
    assert client.stats().rejected == 2


# --- ranks (and `test_ranks`) -------------------------------------------------------------------


def test_all_ranks_have_names_of_their_own(connect: MakeClient) -> None:
    client = connect(rank=3, world_size=4, ranks="all")
    client.emit({"a": 1.0, "text": sidestep.Text("x")}, step=1)
    client.emit({"a": 2.0}, step=2)
    client.emit({"a": 3.0}, step=3)
    assert numbers(client) == [{"rank_3/a": 1.0}, {"rank_3/a": 2.0}, {"rank_3/a": 3.0}]
    assert values(client)[0].tag == "rank_3/text"


def test_the_prefix_counts_as_part_of_a_tag(
    connect: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(rank=3, world_size=4, ranks="all")
    client.emit({"x" * 1017: 1.0, "y" * 1018: 2.0}, step=1)
    assert numbers(client) == [{"rank_3/" + "x" * 1017: 1.0}]
    assert "a tag of 1018 bytes: at most 1017" in caplog.text


# --- values ------------------------------------------------------------------------------------


def test_values_are_snapshots(connect: MakeClient) -> None:
    client = connect()
    tensor, array = torch.zeros(4), np.zeros(4, dtype=np.float32)
    client.emit({"t": sidestep.Histogram(tensor), "a": sidestep.Histogram(array)}, step=1)
    tensor += 1
    array += 1
    for value in values(client):
        assert bytes(value.arrays[0].data) == bytes(16)


def test_a_value_may_remember_within_bounds(connect: MakeClient) -> None:
    client = connect(outbox_bytes=1 << 20)
    representation = sidestep.Representation(torch.randn(4, 3), spectrum_every=10)
    for step in (0, 9, 10):
        client.emit({"r": representation}, step=step)
    assert [len(value.arrays) for value in values(client)] == [6, 5, 6]
    client.emit({f"text/{i}": sidestep.Text("x") for i in range(50)}, step=1)
    assert list(client._sorter._memory) == ["r"]


def test_an_outbox_that_is_full_keeps_the_newest_and_counts_the_rest(connect: MakeClient) -> None:
    client = connect()
    for step in range(5000):
        client.emit({"a": 1.0, "b": 2.0, "c": 3.0}, step=step)
    stats = client.stats()
    assert stats.emitted == stats.acked + stats.held + stats.dropped == 5000
    assert stats.dropped > 0
    data = bytes(client._memory.layout.buffer)
    from tests.unit.client.outboxes import adopted

    held = [seq for seq, record in adopted(data).items() if record is not None]
    assert held == list(range(5001 - stats.held, 5001))


# --- blocking ----------------------------------------------------------------------------------


def test_blocking_waits_for_room(connect: MakeClient) -> None:
    client = connect(on_full="block")
    tag_values = {"a": 1.0, "b": 2.0}
    emitted = 0
    while client._outbox.has_room(40):
        client.emit(tag_values, step=1)
        emitted += 1
    waiting = threading.Thread(target=client.emit, args=(tag_values, 2))
    waiting.start()
    # Whatever it does until then: without room it cannot end.
    client._outbox.release(0, 0)
    assert waiting.is_alive()
    while (chunk := client._outbox.take(client._outbox.acked_seq + 1, lambda _: True)) is not None:
        client._outbox.release(chunk.last_seq, 0)  # type: ignore[union-attr]
        if client._outbox.has_room(40):
            break
    waiting.join(10)
    assert not waiting.is_alive()
    assert client.stats().emitted == emitted + 1
    assert client.stats().dropped == 0


# --- before connect, after finish, disabled ------------------------------------------------------


def test_before_connect_it_is_counted_and_said_once(
    places: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sidestep, "_default", None)
    monkeypatch.setattr(sidestep, "_unconnected", 0)
    for _ in range(3):
        sidestep.emit({"a": 1.0}, step=1)
    assert sidestep.stats().rejected == 3
    assert len(caplog.records) == 1
    assert "call client.connect(...) once" in caplog.text
    assert sidestep.flush() is False
    assert sidestep.finish() is True
    with pytest.raises(sidestep.ConfigurationError, match=r"before client\.on_alarm"):
        sidestep.on_alarm(print)
    monkeypatch.setenv("SIDESTEP_STRICT", "1")
    with pytest.raises(InvalidValueError, match="emit before connect"):
        sidestep.emit({"a": 1.0}, step=1)
    monkeypatch.setenv("SIDESTEP_DISABLED", "1")
    sidestep.emit({"a": 1.0}, step=1)
    assert sidestep.stats().rejected == 4


@pytest.mark.parametrize("strict", [False, True])
def test_after_finish_values_are_counted(connect: MakeClient, strict: bool) -> None:
    client = connect(strict=strict)
    client.emit({"a": 1.0}, step=1)
    assert client.finish(0) is False
    client.emit({"a": 1.0, "b": 2.0}, step=2)
    client.emit(5)  # type: ignore[arg-type]
    stats = client.stats()
    assert (stats.emitted, stats.held, stats.rejected) == (1, 1, 3)
    assert client.finish() is False
    assert client.flush() is False
    client.on_alarm(print)


@pytest.mark.parametrize("value", ["1", "true", "YES"])
def test_disabled_it_does_nothing(places: Any, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SIDESTEP_DISABLED", value)
    threads = threading.active_count()
    with sidestep.connect("test", strict=True) as client:
        client.emit({"a": "no number"}, step=1)
        client.emit(None)  # type: ignore[arg-type]
        assert client.flush() is True
        assert client.stats() == sidestep.Stats()
        assert threading.active_count() == threads
    assert client.finish() is True


def test_the_modules_functions_speak_of_the_last_client(connect: MakeClient) -> None:
    first, second = connect(), connect()
    sidestep.emit({"a": 1.0}, step=1, wall_time=1.0)
    assert (first.stats().emitted, second.stats().emitted) == (0, 1)
    assert sidestep.stats() == second.stats()
    assert sidestep.flush(0) is False
    assert sidestep.finish(0) is False

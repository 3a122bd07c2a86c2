"""The OTLP sink against a real receiver: real HTTP, real protobuf, every kind of answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sidestep.proto import RunSpec
from sidestep.sidecar.config import ConfigurationError, load
from sidestep.sidecar.rows.points import ScalarBlock
from sidestep.sidecar.sinks.base import SinkContext, SinkUnusableError
from sidestep.sidecar.sinks.otlp import OtlpSink
from tests.support.collector import Collector

pytest.importorskip("opentelemetry.sdk")

SECOND = 1_000_000_000
BEGIN = 1_700_000_000 * SECOND


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    for name in ("OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Collector() as made:
        yield made


class Opened:
    """A sink that is open, and what it logs."""

    def __init__(self, url: str, interval_s: float = 0.0, state: Any = None) -> None:
        self.logged: list[str] = []
        self.sink = OtlpSink()
        settings = {"url": f"{url}/v1/metrics", "interval_s": interval_s}
        self.sink.open(
            SinkContext(
                RunSpec("demo", "/logs"),
                "demo",
                state,
                lambda _: None,
                self.logged.append,
                settings,
            )
        )

    def send(self, *blocks: ScalarBlock) -> Any:
        self.sink.write(blocks)
        return self.sink.commit()


def block(tags: tuple[str, ...], *rows: tuple[int, float, tuple[float, ...]]) -> ScalarBlock:
    """Rows of (step, seconds after the beginning, values)."""
    return ScalarBlock(
        tags,
        np.array([row[0] for row in rows], np.int64),
        np.array([BEGIN + round(row[1] * SECOND) for row in rows], np.int64),
        np.array([row[2] for row in rows], np.float64),
    )


def test_each_number_arrives_with_its_time_its_tag_and_its_run(collector: Collector) -> None:
    opened = Opened(collector.url)
    third = 1 / 3
    opened.send(block(("a", "b"), (1, 0.0, (third, math.inf)), (2, 0.25, (-0.0, 5e-324))))
    assert collector.points() == [
        ("demo", "a", BEGIN, third),
        ("demo", "b", BEGIN, math.inf),
        ("demo", "a", BEGIN + SECOND // 4, 0.0),
        ("demo", "b", BEGIN + SECOND // 4, 5e-324),
    ]
    assert math.copysign(1, collector.points()[2][3]) == -1
    assert collector.points("sidestep.step") == [
        ("demo", "", BEGIN, 1),
        ("demo", "", BEGIN + SECOND // 4, 2),
    ]
    path, request = collector.requests[0]
    assert path == "/v1/metrics"
    (resource,) = request.resource_metrics
    named = {one.key: one.value.string_value for one in resource.resource.attributes}
    assert named["service.name"] == "sidestep"
    assert named["host.name"]


def test_nan_is_nan(collector: Collector) -> None:
    Opened(collector.url).send(block(("a",), (1, 0.0, (math.nan,))))
    ((_, _, _, value),) = collector.points()
    assert math.isnan(value)


def test_of_each_tag_the_last_of_each_interval(collector: Collector) -> None:
    opened = Opened(collector.url, interval_s=1.0)
    rows = [(i, i / 10, (float(i),)) for i in range(25)]
    opened.send(block(("a",), *rows), block(("b",), (30, 0.05, (7.0,))))
    assert [(tag, value) for _, tag, _, value in collector.points()] == [
        ("a", 9.0),
        ("a", 19.0),
        ("a", 24.0),
        ("b", 7.0),
    ]


def test_a_step_that_is_derived_late_does_not_send_the_step_back(collector: Collector) -> None:
    opened = Opened(collector.url, interval_s=1.0)
    opened.send(block(("a",), (5, 5.5, (1.0,))))
    opened.send(block(("a_rank",), (3, 3.5, (1.0,))))
    opened.send(block(("a",), (6, 6.5, (1.0,))))
    assert [value for *_, value in collector.points("sidestep.step")] == [5, 6]


def test_many_points_are_several_requests(collector: Collector) -> None:
    opened = Opened(collector.url)
    tags = tuple(f"t{i}" for i in range(4000))
    opened.send(block(tags, (1, 0.0, tuple(map(float, range(4000)))), (2, 1.0, (0.0,) * 4000)))
    assert len(collector.points()) == 8000
    sizes = [request.ByteSize() for _, request in collector.requests]
    assert len(sizes) == 3
    assert max(sizes) < 4 << 20


def test_what_is_refused_as_malformed_is_counted_and_holds_up_nothing(collector: Collector) -> None:
    opened = Opened(collector.url, state={"skipped": 10})
    collector.status = 400
    assert opened.send(block(("a", "b"), (1, 0.0, (1.0, 2.0)))) == {"skipped": 13}
    collector.status = 200
    assert opened.send(block(("a",), (2, 1.0, (3.0,)))) == {"skipped": 13}
    assert [value for *_, value in collector.points()] == [3.0]


def test_a_part_that_is_refused_is_counted(collector: Collector) -> None:
    collector.rejects = 2
    opened = Opened(collector.url)
    assert opened.send(block(("a",), (1, 0.0, (1.0,)))) == {"skipped": 4}  # scalars, and steps
    assert opened.logged == [
        "the Collector refuses 2 points, and they are skipped: I do not like them"
    ]


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "OTEL_EXPORTER_OTLP_HEADERS"), (404, "otlp_endpoint"), (500, "waits")],
)
def test_what_may_be_over_tomorrow_is_kept(collector: Collector, status: int, said: str) -> None:
    opened = Opened(collector.url)
    collector.status = status
    with pytest.raises(SinkUnusableError, match=said):
        opened.send(block(("a",), (1, 0.0, (1.0,))))
    collector.status = 200
    opened.send()  # a commit that failed is said again by whoever asked for it
    assert [value for *_, value in collector.points()] == [1.0]


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidestep.sidecar.sinks.otlp._TIMEOUT_S", 0.2)
    opened = Opened("http://me:s3cr3t@127.0.0.1:9/v1/metrics?key=s3cr3t")
    with pytest.raises(SinkUnusableError, match=r"at http://127\.0\.0\.1:9/v1/metrics takes"):
        opened.send(block(("a",), (1, 0.0, (1.0,))))
    opened.sink.close(False)


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "grpc://x:4317", "http://", "x"])
def test_what_is_no_receiver(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"http://127\.0\.0\.1:4318"):
        load(None, {}, otlp_endpoint=url)


def test_the_path_is_otlps_own_unless_another_is_given() -> None:
    assert load(None, {}, otlp_endpoint="http://c:4318").otlp_endpoint == "http://c:4318/v1/metrics"
    given = "https://c.example/otlp/v1/metrics"
    assert load(None, {}, otlp_endpoint=given).otlp_endpoint == given

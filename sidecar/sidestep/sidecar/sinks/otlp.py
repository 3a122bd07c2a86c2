"""The OTLP sink: a run's numbers as gauges with their own times, to an OpenTelemetry Collector.

What OTLP can say truly of a training: at this time the value of this tag was that. So every number
is a point of the gauge ``sidestep.scalar``, with the tag and the run as attributes and the time of
the record; the step is a gauge of its own, ``sidestep.step``, at the same times, since an attribute
that is another one at each point would begin a new time series at each step. Of each tag the last
value in each `otlp_interval_s` is sent: a gauge is sampled, and what reads it expects no more.

At least once: a batch whose answer was lost is sent again, with the same times, so that a store
which knows a point by series and time has it once. A Collector that is away is waited for ten
seconds, then the sink is failed and tried again every 30 s; nobody waits for it. What it refuses
as malformed would be refused again: it is counted as skipped.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import numpy as np

from ..rows.points import Points, ScalarBlock
from .base import SinkContext, SinkState, SinkUnusableError

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricsData
    from requests import Response

_TIMEOUT_S: Final = 10.0
_POINTS: Final = 5000
"""In a request: some 500 KB, far below the 4 MiB that receivers take."""

_REFUSED: Final = frozenset({400, 413, 415, 422})
"""The Collector will never take these bytes; every other failure may be over tomorrow."""

_HINTS: Final = {
    401: "it wants a login: OTEL_EXPORTER_OTLP_HEADERS of the daemon's environment",
    403: "it wants another login: OTEL_EXPORTER_OTLP_HEADERS of the daemon's environment",
    404: "there is no OTLP receiver at this path: `otlp_endpoint`",
}

_Point = tuple[str, int, float | int]
"""Tag, time in ns, value; the step has no tag."""


class OtlpSink:
    """Sends one run's numbers. Its state is ``{"skipped": points that were refused}``."""

    def __init__(self) -> None:
        self._points: dict[tuple[str, int], _Point] = {}
        self._steps: dict[tuple[str, int], _Point] = {}
        self._newest_step_ns = 0
        self._skipped = 0
        self._answers: deque[Response] = deque(maxlen=1)
        self._exporter: Any = None

    def open(self, context: SinkContext) -> None:
        """Make ready to send; nothing is sent before there is something.

        Raises:
            SinkUnusableError: the packages are missing.
        """
        try:
            import requests
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.sdk.resources import Resource
        except ModuleNotFoundError as error:
            raise SinkUnusableError(f"{error}. Run: pip install 'sidestep[otlp]'") from None
        # What goes wrong is this sink's to say, once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        skipped = (context.state or {}).get("skipped")
        self._skipped = skipped if isinstance(skipped, int) else 0
        self._context = context
        self._url = str(context.settings["url"])
        self._interval_ns = round(float(context.settings["interval_s"]) * 1e9)
        # Under OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME of the daemon's environment.
        self._resource = Resource.create(
            {
                "service.name": "sidestep",
                "service.instance.id": f"{socket.gethostname()}/{context.run.name}",
                "host.name": socket.gethostname(),
            }
        )
        session = requests.Session()
        session.hooks["response"].append(self._answered)
        self._exporter = OTLPMetricExporter(self._url, session=session, timeout=_TIMEOUT_S)

    def write(self, points: Iterable[Points]) -> None:
        """Take the numbers among `points`; of a tag the last in each interval."""
        for block in points:
            if isinstance(block, ScalarBlock) and len(block.steps):
                self._take(block)

    def commit(self) -> SinkState:
        """Send what was taken, and see that it has arrived.

        Raises:
            SinkUnusableError: the Collector is away, or refuses whatever comes.
        """
        steps = list(self._steps.values())
        for metric, points in (
            ("sidestep.scalar", list(self._points.values())),
            ("sidestep.step", steps),
        ):
            for first in range(0, len(points), _POINTS):
                self._send(metric, points[first : first + _POINTS])
        if steps:
            self._newest_step_ns = max(self._newest_step_ns, *(point[1] for point in steps))
        self._points, self._steps = {}, {}
        return {"skipped": self._skipped}

    def close(self, finished: bool) -> None:
        """Let go of the connection. What was not committed will be handed over again."""
        self._points, self._steps = {}, {}
        exporter, self._exporter = self._exporter, None
        if exporter is not None:
            exporter.shutdown()

    # --- one block, one request ------------------------------------------------------------------

    def _take(self, block: ScalarBlock) -> None:
        for row, interval in self._sampled(block):
            time_ns = int(block.times_ns[row])
            values = block.values[row].tolist()
            for tag, value in zip(block.tags, values, strict=True):
                self._points[tag, interval] = tag, time_ns, value
            # What is derived later of an earlier step would have the step go back and forth.
            known = self._steps.get(("", interval), ("", self._newest_step_ns, 0))
            if time_ns > known[1]:
                self._steps["", interval] = "", time_ns, int(block.steps[row])

    def _sampled(self, block: ScalarBlock) -> Iterator[tuple[int, int]]:
        """The rows that are sent, each with what tells its interval from others."""
        if not self._interval_ns:
            yield from ((row, int(time_ns)) for row, time_ns in enumerate(block.times_ns))
            return
        intervals = block.times_ns // self._interval_ns
        lasts = np.flatnonzero(np.append(intervals[1:] != intervals[:-1], True))
        yield from ((int(row), int(intervals[row])) for row in lasts)

    def _send(self, metric: str, points: Sequence[_Point]) -> None:
        from opentelemetry.sdk.metrics.export import MetricExportResult

        self._answers.clear()
        result = self._exporter.export(self._request(metric, points))
        answer = self._answers[-1] if self._answers else None
        if result is MetricExportResult.SUCCESS:
            self._note_rejected(answer)
        elif answer is not None and answer.status_code in _REFUSED:
            self._skip(len(points), f"HTTP {answer.status_code}: {answer.text!r:.200}")
        else:
            raise SinkUnusableError(
                f"the Collector at {_shown(self._url)} takes nothing: {_why(answer)}"
            )

    def _request(self, metric: str, points: Sequence[_Point]) -> MetricsData:
        from opentelemetry.sdk.metrics import export as sdk
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        run = self._context.run.name
        data = [
            sdk.NumberDataPoint(
                attributes={"run": run, "tag": tag} if tag else {"run": run},
                start_time_unix_nano=0,  # a gauge has none
                time_unix_nano=time_ns,
                value=value,
            )
            for tag, time_ns, value in points
        ]
        text = "The newest step." if metric.endswith("step") else "A value, in the unit of its tag."
        gauge = sdk.Metric(metric, text, "", sdk.Gauge(data))
        scope = sdk.ScopeMetrics(InstrumentationScope("sidestep"), [gauge], "")
        return sdk.MetricsData([sdk.ResourceMetrics(self._resource, [scope], "")])

    def _answered(self, answer: Response, *_: Any, **__: Any) -> None:
        self._answers.append(answer)

    def _note_rejected(self, answer: Response | None) -> None:
        """Count what the Collector has not taken of a request that it has."""
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service

        try:
            said = service.ExportMetricsServiceResponse.FromString(
                answer.content if answer else b""
            )
        except DecodeError:
            return  # it says nothing that can be understood: it took all of it
        if said.partial_success.rejected_data_points > 0:
            partial = said.partial_success
            self._skip(int(partial.rejected_data_points), partial.error_message)

    def _skip(self, count: int, why: str) -> None:
        if not self._skipped:
            self._context.log(f"the Collector refuses {count} points, and they are skipped: {why}")
        self._skipped += count


def _shown(url: str) -> str:
    """The address without what may be a secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _why(answer: Response | None) -> str:
    if answer is None:
        return "no answer; what was emitted waits in the journal"
    hint = _HINTS.get(answer.status_code, "what was emitted waits in the journal")
    return f"HTTP {answer.status_code} {answer.reason}; {hint}"

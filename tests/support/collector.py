"""An OTLP/HTTP receiver as a Collector has one: real HTTP, the protobuf bytes decoded, and a mind.

The Collector itself is in neither Debian nor PyPI, so it is not run here; what it would be sent is
read with OpenTelemetry's own messages.
"""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as service

Point = tuple[str, str, int, float]  # run, tag, time in ns, value


class Collector:
    """Listens on the loopback.

    Attributes:
        status: what it answers; 200 takes the points.
        rejects: points of each request that it says it has not taken.
        requests: what has come, decoded, with its path; also what was refused.
    """

    def __init__(self, port: int = 0) -> None:
        self.status = 200
        self.rejects = 0
        self.requests: list[tuple[str, service.ExportMetricsServiceRequest]] = []
        self.taken: list[service.ExportMetricsServiceRequest] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.headers["Content-Type"] == "application/x-protobuf"
                status, answer = outer._take(self.path, body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        """As a user writes it, without OTLP's path."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def _take(self, path: str, body: bytes) -> tuple[int, bytes]:
        request = service.ExportMetricsServiceRequest.FromString(body)
        self.requests.append((path, request))
        if self.status != 200:
            return self.status, b"no"
        self.taken.append(request)
        answer = service.ExportMetricsServiceResponse()
        if self.rejects:
            answer.partial_success.rejected_data_points = self.rejects
            answer.partial_success.error_message = "I do not like them"
        return 200, answer.SerializeToString()

    def points(self, metric: str = "sidestep.scalar") -> list[Point]:
        """The points of a metric that it took, in the order of their arrival."""
        found: list[Point] = []
        for request in list(self.taken):
            for resource in request.resource_metrics:
                for scope in resource.scope_metrics:
                    for one in scope.metrics:
                        assert one.WhichOneof("data") == "gauge"
                        found += [_point(p) for p in one.gauge.data_points if one.name == metric]
        return found


def _point(point: Any) -> Point:
    attributes = {one.key: one.value.string_value for one in point.attributes}
    assert set(attributes) <= {"run", "tag"}, attributes
    assert point.start_time_unix_nano == 0
    value = getattr(point, point.WhichOneof("value"))
    return attributes["run"], attributes.get("tag", ""), point.time_unix_nano, value

"""Answers scrapers over HTTP: whoever hangs, floods or asks for more costs this server alone.

A connection is one request and has `_CONNECTION_S` for all of it; there are `_CONNECTIONS` at once,
and one too many is closed unread. The text is made at most twice a second, however many ask.
"""

from __future__ import annotations

import hmac
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, Final, cast

from .address import is_loopback, is_own_name

_CONNECTIONS: Final = 16
_CONNECTION_S: Final = 10.0
_CACHE_S: Final = 0.5
_HELP: Final = b"sidestep: metrics for Prometheus are at /metrics\n"

Render = Callable[[str], tuple[str, bytes]]
"""From an Accept header to a content type and the text."""


class Cached:
    """A `Render` that does not do the same twice in a short while; for several threads.

    Args:
        render: makes the text.
        clock: monotonic seconds.
    """

    def __init__(self, render: Render, clock: Callable[[], float] = time.monotonic) -> None:
        self._render = render
        self._clock = clock
        self._lock = threading.Lock()
        self._made: dict[bool, tuple[float, tuple[str, bytes]]] = {}

    def __call__(self, accept: str) -> tuple[str, bytes]:
        """The text, at most `_CACHE_S` old."""
        # Of all that a scraper may say, one thing matters; the rest would be a key without end.
        openmetrics = "application/openmetrics-text" in accept
        wanted = "application/openmetrics-text; version=1.0.0" if openmetrics else ""
        with self._lock:
            at, found = self._made.get(openmetrics, (-_CACHE_S, ("", b"")))
            if self._clock() - at >= _CACHE_S:
                found = self._render(wanted)
                self._made[openmetrics] = self._clock(), found
            return found


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Listens from its construction on; `serve_forever` in a thread, `sweep` now and then.

    Args:
        host: a numeric address, or localhost.
        port: 0 for any that is free.
        render: makes the answer.
        token: what scrapers must present, or None.

    Raises:
        OSError: it cannot listen there.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, host: str, port: int, render: Render, token: str | None) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.render = render
        self.token = token
        self.local = is_loopback(host)
        self.refused = 0
        self._open: dict[int, tuple[float, socket.socket]] = {}
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    @property
    def port(self) -> int:
        """The port that it listens at."""
        return int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection its thread, unless there are too many."""
        with self._lock:
            if len(self._open) >= _CONNECTIONS:
                self.refused += 1
                self.shutdown_request(request)
                return
            self._open[id(request)] = time.monotonic(), request
        request.settimeout(_CONNECTION_S)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The connection is over."""
        self._open.pop(id(request), None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that left or was too slow is nobody's trouble."""

    def sweep(self) -> None:
        """End the connections whose time is over: one that sends a byte a second ends as well."""
        now = time.monotonic()
        for since, request in list(self._open.values()):
            if now - since > _CONNECTION_S:
                try:
                    request.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it has gone


class _Handler(BaseHTTPRequestHandler):
    server_version = "sidestep"
    sys_version = ""

    def do_GET(self) -> None:
        server = cast("Server", self.server)
        if server.local and not is_own_name(self.headers.get("Host")):
            self._say(403, b"ask for localhost or a numeric address, not by another name\n")
        elif server.token is not None and not self._is_known(server.token):
            self._say(401, b"a bearer token is needed: see prometheus_token\n")
        elif self.path.partition("?")[0] == "/metrics":
            kind, text = server.render(self.headers.get("Accept") or "")
            self._say(200, text, kind)
        else:
            self._say(200 if self.path == "/" else 404, _HELP)

    do_HEAD = do_GET  # noqa: N815 - the name is the interface's

    def _is_known(self, token: str) -> bool:
        said = (self.headers.get("Authorization") or "").encode(errors="replace")
        return hmac.compare_digest(said, b"Bearer " + token.encode())

    def _say(self, code: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        if code == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the interface's
        """Nothing: a flood must not fill the log."""

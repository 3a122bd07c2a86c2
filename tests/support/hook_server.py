"""A webhook's other end: a real HTTP server that answers what a test has scripted."""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from .waiting import wait_until

Answer = int | str | tuple[int, Mapping[str, str]]
"""A status, one with headers, or a way to misbehave: ``hang``, ``drip``, ``close``, ``garbage``."""

SECRET = "T000-B000-s3cr3t"
"""Part of the address; a test looks for it where it must not be."""


@dataclass(frozen=True, slots=True)
class Request:
    """One POST."""

    path: str
    headers: Mapping[str, str]
    body: bytes


class HookServer:
    """Listens on the loopback until the `with` block ends; answers 200 when nothing is scripted.

    Attributes:
        requests: what came, in its order, whatever the answer was.
    """

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Request] = []
        self._script: deque[Answer] = deque()
        self._ending = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                headers = {key.lower(): value for key, value in self.headers.items()}
                server.requests.append(Request(self.path, headers, self.rfile.read(length)))
                server.answer(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}/services/{SECRET}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._http.shutdown()
        self._thread.join(10)
        self._http.server_close()

    def script(self, *answers: Answer) -> None:
        """What the next requests get, one each."""
        self._script.extend(answers)

    def bodies(self) -> list[dict[str, Any]]:
        """What came, as JSON."""
        return [json.loads(request.body) for request in list(self.requests)]

    def await_bodies(self, many: int, timeout_s: float = 20.0) -> list[dict[str, Any]]:
        """Wait until so many have come."""
        wait_until(lambda: len(self.requests) >= many, timeout_s, self.bodies)
        return self.bodies()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request as the script says."""
        answer = self._script.popleft() if self._script else 200
        match answer:
            case "hang":
                self._ending.wait(60)
            case "drip":
                while not self._ending.wait(0.1):
                    try:
                        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: y\r\n"[:1])
                        handler.wfile.flush()
                    except OSError:
                        return
            case "close":
                handler.connection.shutdown(socket.SHUT_RDWR)
            case "garbage":
                handler.wfile.write(b"\0\1\2 not HTTP\r\n\r\n")
            case int() as status:
                handler.send_response(status)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
            case (status, headers):
                handler.send_response(status)
                for key, value in headers.items():
                    handler.send_header(key, value)
                handler.send_header("Content-Length", "0")
                handler.end_headers()
            case _:
                raise ValueError(answer)
        handler.close_connection = True

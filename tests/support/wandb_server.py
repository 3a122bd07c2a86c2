"""A W&B server as far as a run's metrics go: it answers, stores history lines, or misbehaves.

Enough of GraphQL and of the file stream for wandb-core to start, resume, log and finish a run,
and for ``wandb sync`` to upload one. With `status`, `hang` or `faults` it does what fault tests
need; nobody listens at `free_port`.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

API_KEY = "0123456789abcdef" * 2 + "01234567"
"""One that wandb takes for an API key."""


@dataclass(frozen=True)
class Fault:
    """What happens to the requests of a run.

    Attributes:
        status: the HTTP status that they are answered with.
        retry_after_s: said beside it.
        hang: whether they get no answer instead.
        at: ``init``: all of them; ``upload``: those that bring rows, or end the run; ``finish``:
            those that end it.
    """

    status: int = 503
    retry_after_s: int | None = None
    hang: bool = False
    at: str = "init"

    def hits(self, request: str) -> bool:
        """Whether a request of this kind (``init``, ``upload``, ``finish``) is one of them."""
        return request in {"init": _KINDS, "upload": _KINDS[1:], "finish": _KINDS[2:]}[self.at]


_KINDS = ("init", "upload", "finish")


def free_port() -> int:
    """A port of the loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class WandbServer:
    """Listens on a port of the loopback until it is left.

    Attributes:
        url: what WANDB_BASE_URL must be.
        history: the lines of history of each run, by its id, as JSON.
        requests: names of the GraphQL operations and paths of other requests, in their order.
        status: the HTTP status that every request is answered with, if not 200.
        hang: whether requests are left without an answer.
        faults: what happens to the requests of some runs, by their ids.
        refused: how many requests of each run were hit by its fault.
    """

    def __init__(self, port: int = 0) -> None:
        self.history: dict[str, list[str]] = defaultdict(list)
        self.runs: dict[str, dict[str, Any]] = {}
        self.complete: set[str] = set()
        self.requests: list[str] = []
        self.keys: set[str] = set()
        self.status = 200
        self.hang = False
        self.faults: dict[str, Fault] = {}
        self.refused: Counter[str] = Counter()
        self._release = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, answer, headers = server._respond(self.path, body)
                payload = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_PUT = do_POST  # noqa: N815  # the base class's names

            def log_message(self, *args: Any) -> None:
                pass

        self._http = _Listener(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release.set()
        self._http.shutdown()
        self._http.server_close()

    def answer_again(self) -> None:
        """End a hang. What was asked meanwhile is not answered."""
        self.hang = False

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        """The rows of history that were uploaded."""
        return [json.loads(line) for line in self.history[run_id]]

    def _respond(self, path: str, body: bytes) -> tuple[int, dict[str, Any], dict[str, str]]:
        run, kind = _whose(path, body)
        fault = self.faults.get(run)
        if fault is None or not fault.hits(kind):
            return *self._answer(path, body), {}
        self.refused[run] += 1
        if fault.hang:
            self._release.wait()
        after = {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
        return fault.status, {"errors": [{"message": "as the test wants it"}]}, after

    def _answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if self.hang:
            self._release.wait()
            return 503, {}
        if self.status != 200:
            return self.status, {"errors": [{"message": "as the test wants it"}]}
        if path == "/graphql":
            request = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            name = found[1] if found else "?"
            self.requests.append(name)
            return 200, {"data": self._graphql(name, request.get("variables") or {})}
        self.requests.append(path)
        if stream := _STREAM.fullmatch(path):
            self._file_stream(stream[1], json.loads(body))
        return 200, {}

    def _file_stream(self, run_id: str, request: dict[str, Any]) -> None:
        part = (request.get("files") or {}).get("wandb-history.jsonl")
        if part:
            lines = self.history[run_id]
            lines[part["offset"] : part["offset"] + len(part["content"])] = part["content"]
        if request.get("complete"):
            self.complete.add(run_id)

    def _graphql(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        if name == "RunResumeStatus":
            run = self._run(variables["name"]) if variables["name"] in self.runs else None
            return {"model": {"id": "p", "name": "p", "entity": _ENTITY, "bucket": run}}
        if name == "UpsertBucket":
            known = variables["name"] in self.runs
            self.runs.setdefault(variables["name"], {}).update(variables)
            return {"upsertBucket": {"bucket": self._run(variables["name"]), "inserted": not known}}
        if name == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/put"} for f in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return {}

    def _run(self, name: str) -> dict[str, Any]:
        given, lines = self.runs[name], self.history[name]
        return {
            "id": f"id-{name}",
            "name": name,
            "displayName": given.get("displayName") or name,
            "config": given.get("config") or "{}",
            "project": {"id": "p", "name": given.get("project") or "p", "entity": _ENTITY},
            "historyLineCount": len(lines),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(lines[-1:]),
            "eventsTail": "[]",
            "summaryMetrics": given.get("summaryMetrics") or "{}",
            "wandbConfig": '{"t": {}}',
            "tags": given.get("tags") or [],
        }


def _whose(path: str, body: bytes) -> tuple[str, str]:
    """The run that a request is of, and its kind: see `Fault`."""
    if stream := _STREAM.fullmatch(path):
        return stream[1], "finish" if json.loads(body).get("complete") is not None else "upload"
    if path == "/graphql":
        return str((json.loads(body).get("variables") or {}).get("name")), "init"
    return "", "upload"


_STREAM = re.compile(r"/files/[^/]+/[^/]+/([^/]+)/file_stream")


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed has reset its connection: as the test wants it."""


_ENTITY = {"id": "e", "name": "entity"}

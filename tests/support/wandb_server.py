"""A W&B server as far as a run's metrics go: it answers, stores history lines, or misbehaves.

Enough of GraphQL and of the file stream for wandb-core to start, resume, log and finish a run,
and for ``wandb sync`` to upload one. With `status` or `hang` it does what fault tests need.
"""

from __future__ import annotations

import json
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

API_KEY = "0123456789abcdef" * 2 + "01234567"
"""One that wandb takes for an API key."""


class WandbServer:
    """Listens on a port of the loopback until it is left.

    Attributes:
        url: what WANDB_BASE_URL must be.
        history: the lines of history of each run, by its id, as JSON.
        requests: names of the GraphQL operations and paths of other requests, in their order.
        status: the HTTP status that every request is answered with, if not 200.
        hang: whether requests are left without an answer.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[str]] = defaultdict(list)
        self.runs: dict[str, dict[str, Any]] = {}
        self.complete: set[str] = set()
        self.requests: list[str] = []
        self.keys: set[str] = set()
        self.status = 200
        self.hang = False
        self._release = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, answer = server._answer(self.path, body)
                payload = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            do_GET = do_PUT = do_POST  # noqa: N815  # the base class's names

            def log_message(self, *args: Any) -> None:
                pass

        self._http = _Listener(("127.0.0.1", 0), Handler)
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
        if stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
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


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed has reset its connection: as the test wants it."""


_ENTITY = {"id": "e", "name": "entity"}

"""Debian's own Prometheus server and promtool for tests, skipped with a reason without them."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import yaml

from .waiting import wait_until


def tool(name: str) -> str:
    """The path of `prometheus` or `promtool`."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here: apt install prometheus")
    return found


def promtool(*arguments: str, stdin: bytes = b"") -> str:
    """What promtool says, both ways; it must be content."""
    done = subprocess.run(
        [tool("promtool"), *arguments], input=stdin, capture_output=True, timeout=60, check=False
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def free_port() -> int:
    """A port of the loopback that nobody has at this moment."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def get(url: str, **headers: str) -> tuple[int, str, str]:
    """Status, content type and text of an answer, whatever the status."""
    request = urllib.request.Request(
        url, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, str(answer.headers["Content-Type"]), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, str(error.headers["Content-Type"]), error.read().decode()


class Prometheus:
    """A server in `folder` that scrapes `target` four times a second, as the job `sidestep`.

    Args:
        folder: for its configuration, log and data.
        target: ADDRESS:PORT.
        rules: files with rules.
    """

    def __init__(self, folder: Path, target: str, *rules: Path) -> None:
        config = {
            "global": {"scrape_interval": "250ms", "evaluation_interval": "250ms"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [{"job_name": "sidestep", "static_configs": [{"targets": [target]}]}],
        }
        file = folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    tool("prometheus"),
                    f"--config.file={file}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        wait_until(self._is_ready, 30, self._log.read_text)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait(10)

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return get(f"{self.url}/-/ready")[0] == 200
        except OSError:
            return False

    def api(self, path: str, **parameters: str) -> Any:
        """What its HTTP API has under `path`."""
        _, _, text = get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        answer = json.loads(text)
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The vector that an expression has now: labels and value of each series."""
        found = self.api("query", query=expression)
        assert found["resultType"] == "vector", found
        return [(one["metric"], float(one["value"][1])) for one in found["result"]]

    def await_query(
        self, expression: str, timeout_s: float = 30.0
    ) -> list[tuple[dict[str, str], float]]:
        """The vector, as soon as it is not empty."""
        return wait_until(
            lambda: self.query(expression), timeout_s, f"nothing for {expression}", 0.1
        )

"""One run with every kind of value, TensorBoard over it, and a Chromium to look at it."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.browser import Browser, missing
from tests.support.sandbox import ROOT, Sandbox
from tests.support.waiting import wait_until

PICTURES = ROOT / "results" / "screenshots"
TENSORBOARD_S = 90.0


@pytest.fixture(scope="session")
def logs() -> Iterator[Path]:
    """The log directory of ``sidestep run -- python client/examples/all_values.py``."""
    with Sandbox() as sandbox:
        script = ROOT / "client" / "examples" / "all_values.py"
        done = sandbox.cli(
            "run", "--", sys.executable, str(script), MPLBACKEND="agg", timeout_s=180
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert " 0 rejected, 0 dropped" in done.stdout
        yield sandbox.logs / "tensorboard"


@pytest.fixture(scope="session")
def tensorboard(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a TensorBoard over `logs`, started as a user would start it."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://localhost:{port}/"
    said = tmp_path_factory.mktemp("tensorboard") / "said"
    with said.open("wb") as out:
        process = subprocess.Popen(
            [ROOT / "launch_tensorboard.sh", logs, str(port)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )

    def answers() -> bool:
        assert process.poll() is None, said.read_text()
        with suppress(OSError), urllib.request.urlopen(f"{url}data/runs", timeout=10) as reply:
            return b"all-values" in reply.read()
        return False

    try:
        wait_until(answers, TENSORBOARD_S, said.read_text, poll_s=0.1)
        yield url
    finally:
        process.terminate()
        process.wait(TENSORBOARD_S)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A window of a headless Chromium."""
    if reason := missing():
        pytest.skip(reason)
    window = Browser(tmp_path_factory.mktemp("profile"), PICTURES)
    try:
        yield window
    finally:
        window.close()

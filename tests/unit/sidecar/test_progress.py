"""Progress: what stands still is known, and no watchdog is petted for it."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from sidestep.sidecar.cli.app import app
from sidestep.sidecar.cli.control_client import Control
from sidestep.sidecar.service.progress import STALLED_S, Progress
from sidestep.sidecar.service.service_manager import ServiceManager


def silent(_text: str) -> None:
    raise AssertionError(_text)


def test_what_stands_still_is_known_by_its_age() -> None:
    now = [100.0]
    progress = Progress(ServiceManager({}, silent), lambda: now[0])
    progress.see(0)
    now[0] += 5
    assert progress.stalled_s() == 5.0
    progress.see(0)
    assert progress.stalled_s() == 5.0
    progress.see(1)
    assert progress.stalled_s() == 0.0


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative"])
def test_an_address_that_is_no_unix_socket_is_named_once(address: str) -> None:
    said: list[str] = []
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000", "HOME": "/"}
    manager = ServiceManager(environ, said.append)
    manager.ready("x")
    manager.tick(1, 1.0)
    manager.stopping(1.0)
    manager.close()
    assert len(said) == 1
    assert repr(address) in said[0]
    assert environ == {"HOME": "/"}, "what the daemon starts must not speak for it"


@pytest.mark.parametrize("usec", ["", "0", "-5", "soon"])
def test_no_watchdog_is_petted_that_is_not_there(usec: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": usec}, silent)
    manager.tick(1, 1.0)
    manager.close()


def test_the_watchdog_of_another_process_is_not_petted() -> None:
    environ = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
    manager = ServiceManager(environ, silent)
    manager.tick(1, 1.0)
    manager.close()


@pytest.mark.parametrize(("stalled_s", "code"), [(0.1, 0), (STALLED_S, 1), (None, 0)])
def test_status_fails_when_ingest_hangs(
    monkeypatch: pytest.MonkeyPatch, stalled_s: float | None, code: int
) -> None:
    """Probes and health checks ask with it."""

    def answer(*_arguments: Any) -> dict[str, Any]:
        return {"daemon": {"pid": 1, "state_dir": "/s", "stalled_s": stalled_s}, "runs": []}

    monkeypatch.setattr(Control, "request", answer)
    plain, as_json = (CliRunner().invoke(app, ["status", *more]) for more in ([], ["--json"]))
    assert (plain.exit_code, as_json.exit_code) == (code, code)
    assert ("the disk of /s hangs" in plain.output) == bool(code)

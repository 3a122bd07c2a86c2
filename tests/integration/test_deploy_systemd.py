"""deploy/systemd: systemd's own tools find the units sound, and their patience is enough."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sidestep.sidecar.config import SidecarSettings
from tests.support.sandbox import ROOT

UNITS = ROOT / "deploy" / "systemd"
SIDESTEP = Path(sys.executable).parent / "sidestep"
ANALYZE = shutil.which("systemd-analyze")

EXPOSURE = {"sidestep.service": 65, "sidestep@.service": 25}
"""How exposed `systemd-analyze security` may find each: 100 is a service with no protection."""


def installed(name: str) -> str:
    """A unit as a user has it who changed the line that says so."""
    text = (UNITS / name).read_text()
    changed, many = re.subn(r"(?m)^ExecStart=.*$", f"ExecStart={SIDESTEP} serve", text)
    assert many == 1
    return changed


def analyze(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """These commands read files alone: nothing is started, and no systemd need run."""
    assert ANALYZE is not None
    return subprocess.run(
        [ANALYZE, *arguments],
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(ANALYZE is None, reason="needs Debian's package systemd")
@pytest.mark.parametrize("name", EXPOSURE)
def test_systemd_finds_nothing_wrong_with_a_unit(tmp_path: Path, name: str) -> None:
    unit = tmp_path / name.replace("@", "@root")
    unit.write_text(installed(name))
    whose = "--system" if "@" in name else "--user"
    verified = analyze(tmp_path, whose, "verify", "--man=no", str(unit))
    assert verified.returncode == 0, verified.stderr
    assert "sidestep" not in verified.stderr, "a warning of ours"
    limit = f"--threshold={EXPOSURE[name]}"
    judged = analyze(tmp_path, "security", "--offline=true", "--no-pager", limit, str(unit))
    assert judged.returncode == 0, judged.stdout[-2000:] + judged.stderr


@pytest.mark.parametrize("name", EXPOSURE)
def test_a_unit_waits_as_long_as_the_daemon_may_take(name: str) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read(UNITS / name)
    service = parser["Service"]
    drain_s = SidecarSettings.model_fields["drain_timeout_s"].default
    assert int(service["TimeoutStopSec"]) >= drain_s + 20
    assert int(service["WatchdogSec"]) >= 30, "a slow disk is no reason to end a daemon"
    assert (service["Type"], service["Restart"]) == ("notify", "on-failure")
    assert "PrivateDevices" not in service, "it would hide /dev/nvidia*"

"""What `sidestep doctor --json` says of a sandbox, ready to be asked for one check."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

from .sandbox import Sandbox

OF_THE_MACHINE = ("daemon.elsewhere", "memory.shm", "tensorboard.process", "places.shm")
"""Checks that see what else runs on the machine on which the tests run."""


@dataclass(frozen=True)
class Diagnosis:
    """Exit code and findings of one call."""

    code: int
    answer: dict[str, Any]

    @property
    def findings(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.answer["findings"]
        return found

    def of(self, check: str, run: str = "") -> dict[str, Any]:
        """The one finding of a check, of a run if one is given; fails when there is none."""
        found = [f for f in self.findings if f["check"] == check and run in ("", f["run"])]
        assert len(found) == 1, f"{check} {run}: {found or self.told()}"
        return found[0]

    def has(self, check: str) -> bool:
        return any(f["check"] == check for f in self.findings)

    def told(self, *levels: str) -> list[str]:
        """Check and sentence of all findings of these levels that are about the sandbox."""
        return [
            f"{f['check']} {f['level']}: {f['says']}"
            for f in self.findings
            if f["level"] in (levels or ("note", "warning", "wrong"))
            and f["check"] not in OF_THE_MACHINE
        ]


def diagnose(sandbox: Sandbox, *arguments: str, **env: str) -> Diagnosis:
    """Run the command, and see that it keeps what it promises whatever it finds."""
    done = sandbox.cli("doctor", "--json", *arguments, **env)
    assert done.stderr == "", done.stderr
    answer = json.loads(done.stdout)
    wrong = [f for f in answer["findings"] if f["level"] == "wrong"]
    assert answer["ok"] is not bool(wrong)
    assert done.returncode == (1 if wrong else 0)
    for finding in answer["findings"]:
        assert finding["says"]
        assert finding["level"] == "ok" or finding["do"], f"no command: {finding}"
        assert not finding["check"].endswith(".check"), f"a check failed itself: {finding}"
    return Diagnosis(done.returncode, answer)


def obey(sandbox: Sandbox, finding: dict[str, Any], **env: str) -> None:
    """Run the command that a finding names, as somebody would who pastes it into a shell."""
    done = subprocess.run(
        ["bash", "-ec", finding["do"]],
        cwd=sandbox.work,
        env=sandbox.env(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{finding['do']}: {done.stdout}{done.stderr}"

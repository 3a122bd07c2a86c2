"""outbox_holder: a client's process is the one that has its outbox locked, whatever it says."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sidestep.sidecar.outboxes.holder import holder

CLIENT = bytes(range(16))
LOCK = """
import fcntl, os, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def outbox(tmp_path: Path) -> Path:
    path = tmp_path / f"{CLIENT.hex()}.outbox"
    path.write_bytes(b"x")
    return path


def locked_by_another(outbox: Path, *before: str) -> tuple[subprocess.Popen[str], int]:
    """A process that has it locked, and what that process takes its own number for."""
    process = subprocess.Popen(
        [*before, sys.executable, "-c", LOCK, str(outbox)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline() or -1)


def end(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=30)


def test_it_is_the_one_that_has_the_lock(outbox: Path, tmp_path: Path) -> None:
    places = (str(tmp_path / "missing"), str(tmp_path))
    assert holder(places, CLIENT) is None
    process, _ = locked_by_another(outbox)
    assert holder(places, CLIENT) == process.pid
    end(process)
    assert holder(places, CLIENT) is None
    assert holder((), CLIENT) is None


def test_of_a_container_it_is_known_here_by_our_number_and_not_by_its_own(outbox: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("needs root and the command unshare")
    apart = [unshare, "--pid", "--fork", "--kill-child"]
    process, own = locked_by_another(outbox, *apart)
    assert own == 1
    seen = holder([str(outbox.parent)], CLIENT)
    assert seen is not None
    assert Path(f"/proc/{seen}/cmdline").read_bytes().split(b"\0")[1] == b"-c"
    end(process)

    # The other way round, a daemon in a container cannot see whose it is, and says nothing.
    code = (
        "from sidestep.sidecar.outboxes.holder import holder; import sys;"
        "print(holder([sys.argv[1]], bytes(range(16))))"
    )
    with outbox.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        answer = subprocess.run(
            [*apart, sys.executable, "-c", code, str(outbox.parent)],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    assert answer.stdout.strip() == "None"

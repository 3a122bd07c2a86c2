"""deploy/slurm: the job script, run whole, with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support import fake_slurm
from tests.support.event_reader import scalars
from tests.support.sandbox import ROOT, Sandbox
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SCRIPT = ROOT / "deploy" / "slurm" / "training.sbatch"
TRAINER = """
import os, signal, sys, time
from pathlib import Path
from sidestep import client
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
client.connect("job", ranks="all", outbox_bytes=4 << 20)
for step in range(200):
    client.emit({"train/loss": float(step)}, step=step)
if "--until-told" in sys.argv:
    Path(os.environ["FAKE_SLURM"], "begun-" + os.environ["RANK"]).touch()
    while not stop:
        time.sleep(0.01)
    os._exit(7)  # killed, as it were: without a goodbye
client.finish()
"""


class Job:
    """The script as `sbatch` would start it."""

    def __init__(self, sandbox: Sandbox, nodes: int, ranks: int, *trainer: str) -> None:
        self.folder = sandbox.root
        (self.folder / "train.py").write_text(TRAINER)
        command = " ".join([sys.executable, str(self.folder / "train.py"), *trainer])
        text, many = re.subn(r"(?m)^TRAIN=.*$", f"TRAIN=({command})", SCRIPT.read_text())
        assert many == 1, "the line that a user changes"
        self.script = self.folder / "job"
        self.script.write_text(text)
        self.env = fake_slurm.install(self.folder, nodes=nodes, ranks_per_node=ranks)

    def start(self, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(self.script)],
            cwd=self.folder,
            env={**self.env, "HOME": str(self.folder / "h"), **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def written(self) -> dict[str, list[int]]:
        """The steps of each rank's curve, over all event files."""
        folder = self.folder / "results/logs/tensorboard/job"
        found: dict[str, list[int]] = {}
        for tag, step, _ in scalars(*sorted(folder.glob("events.out.tfevents.*"))):
            if tag.endswith("train/loss"):
                found.setdefault(tag, []).append(step)
        return found

    def processes(self) -> list[psutil.Process]:
        living = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("FAKE_SLURM") == str(self.folder):
                    living.append(process)
        return living


@pytest.fixture
def jobs(sandbox: Sandbox) -> Iterator[list[Job]]:
    made: list[Job] = []
    yield made
    for job in made:
        for process in job.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()


def all_ranks(many: int) -> Mapping[str, list[int]]:
    return {f"rank_{rank}/train/loss": list(range(200)) for rank in range(many)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_nodes_make_a_tree_and_the_first_writes_everything(
    sandbox: Sandbox, jobs: list[Job]
) -> None:
    job = Job(sandbox, 2, 2)
    jobs.append(job)
    keys = sandbox.root / "keys"
    assert sandbox.cli("keygen", str(keys)).returncode == 0
    running = job.start(SIDESTEP_TREE_KEYS=str(keys), SIDESTEP_TREE_PORT=str(free_port()))
    said, _ = running.communicate(timeout=100)
    assert running.returncode == 0, said
    assert job.written() == all_ranks(4), said
    assert "not everything was written" not in said
    wait_until(lambda: not job.processes(), 10, job.processes)
    assert not list((job.folder / "n1").glob("*/outboxes/*.outbox"))


def test_before_its_time_is_over_it_passes_the_signal_on_and_drains(
    sandbox: Sandbox, jobs: list[Job]
) -> None:
    """Slurm tells the batch script alone (--signal=B:TERM); the ranks die of it."""
    job = Job(sandbox, 2, 2, "--until-told")
    jobs.append(job)
    running = job.start()
    begun = [Path(job.folder, f"begun-{rank}") for rank in range(4)]
    wait_until(lambda: all(path.exists() for path in begun), 60, "not all ranks emit")
    os.kill(running.pid, signal.SIGTERM)
    said, _ = running.communicate(timeout=100)
    assert running.returncode == 7, f"the ranks' own exit code: {said}"
    assert job.written() == all_ranks(4), said
    wait_until(lambda: not job.processes(), 10, job.processes)


def test_what_cannot_be_written_is_said_and_kept(sandbox: Sandbox, jobs: list[Job]) -> None:
    job = Job(sandbox, 1, 1)
    jobs.append(job)
    blocked = job.folder / "results"
    blocked.write_text("a file where the log directory should be")
    began = time.monotonic()
    running = job.start(SIDESTEP_DRAIN_S="1")
    said, _ = running.communicate(timeout=100)
    assert running.returncode == 0, "training is not hurt"
    assert "not everything was written" in said
    assert time.monotonic() - began < 60, "it has waited for the sinks once more"
    blocked.unlink()
    done = sandbox.cli(
        "drain",
        "--timeout",
        "60",
        SIDESTEP_STATE_DIR=str(job.folder / "n0" / "sidestep-u-state"),
        SIDESTEP_RUNTIME_DIR=str(job.folder / "n0" / "later"),
    )
    assert done.returncode == 0, done.stderr
    assert list(job.written().values()) == [list(range(200))]

"""deploy/slurm under a real Slurm of one node: what no stand-in can know of signals and steps."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import real_slurm
from tests.support.event_reader import scalars
from tests.support.real_slurm import RealSlurm
from tests.support.sandbox import ROOT, Sandbox
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SCRIPT = ROOT / "deploy" / "slurm" / "training.sbatch"
TRAINER = """
import os, signal, time
from pathlib import Path
from sidestep import client
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
client.connect("job", ranks="all", outbox_bytes=4 << 20)
for step in range(200):
    client.emit({"train/loss": float(step)}, step=step)
Path("begun-" + os.environ["RANK"]).touch()
while not stop:
    time.sleep(0.01)
os._exit(7)  # killed, as it were: without a goodbye
"""


@pytest.fixture
def slurm(sandbox: Sandbox) -> Iterator[RealSlurm]:
    if why := real_slurm.missing():
        pytest.skip(why)
    with RealSlurm(sandbox.root) as made:
        yield made


def test_the_ranks_hear_of_the_end_and_everything_is_written(slurm: RealSlurm) -> None:
    """Slurm tells the batch script, which tells the ranks alone: not the daemons."""
    folder = slurm.folder
    (folder / "train.py").write_text(TRAINER)
    text = SCRIPT.read_text()
    for before, after in (
        (r"^TRAIN=.*$", f"TRAIN=({sys.executable} {folder}/train.py)"),
        (r"--nodes=2$", "--nodes=1"),
        (r"--ntasks-per-node=8$", "--ntasks-per-node=2"),
        (r"^#SBATCH --gpus-per-node=8$", ""),
        (r"--cpus-per-task=8$", "--cpus-per-task=1"),
    ):
        text, many = re.subn(f"(?m){before}", after, text)
        assert many == 1, before
    script = folder / "job.sbatch"
    script.write_text(text)
    slurm.env["SLURM_TMPDIR"] = str(folder)

    told = slurm.run("sbatch", "--output=job.log", str(script))
    job = told.split()[-1]
    log = folder / "job.log"
    begun = [Path(folder, f"begun-{rank}") for rank in (0, 1)]
    wait_until(lambda: all(path.exists() for path in begun), 60, lambda: told + slurm.said())
    slurm.run("scancel", "--batch", "--signal=TERM", job)
    wait_until(lambda: slurm.state(job)["JobState"] != "RUNNING", 60, log.read_text, 0.2)

    assert slurm.state(job)["ExitCode"] == "7:0", log.read_text()
    assert "stopped" in log.read_text(), "the daemon has left by itself"
    files = sorted((folder / "results/logs/tensorboard/job").glob("events.out.tfevents.*"))
    found = [(tag, step) for tag, step, _ in scalars(*files) if tag.endswith("train/loss")]
    assert sorted(found) == [(f"rank_{rank}/train/loss", k) for rank in (0, 1) for k in range(200)]

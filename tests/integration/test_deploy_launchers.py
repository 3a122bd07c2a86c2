"""deploy/README.md's lines for torchrun and accelerate, run as they stand on the CPU."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.event_reader import scalars
from tests.support.sandbox import ROOT, Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

EXAMPLE = ROOT / "client" / "examples" / "ddp.py"
RANKS, STEPS, SAMPLES = 2, 20, 32


def line_for(launcher: str) -> list[str]:
    """The line of the README, with this machine's number of processes and the example."""
    text = (ROOT / "deploy" / "README.md").read_text()
    (line,) = re.findall(rf"(?m)^(sidestep run -- {launcher} .*) train\.py$", text)
    words = shlex.split(line)
    many = words.index("8")
    assert words[many - 1] in ("--nproc-per-node", "--num_processes")
    words[many] = str(RANKS)
    return [*words, str(EXAMPLE), "--name", launcher, "--steps", str(STEPS)]


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_all_ranks_of_a_launcher_make_one_run(sandbox: Sandbox, launcher: str) -> None:
    pytest.importorskip("torch")
    if launcher == "accelerate":
        pytest.importorskip("accelerate")
    command = line_for(launcher)
    done = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        cwd=sandbox.work,
        env=sandbox.env(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = scalars(*sandbox.event_files(launcher))  # no drain: `run` has waited
    samples = [(step, value) for tag, step, value in found if tag == "train/samples"]
    assert samples == [(step, RANKS * SAMPLES) for step in range(STEPS)], "the sum over all ranks"
    losses = [step for tag, step, _ in found if tag == "train/loss"]
    assert losses == list(range(STEPS)), "one curve"

"""The digits example under DDP by a real torchrun: what is reduced is that of the whole batch."""

from __future__ import annotations

import math
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidestep import client
from tests.support.oracle import assert_booked, bits, read_scalars
from tests.support.recorded_ranks import place
from tests.support.representations import covariance_eigenvalues, reference, slope
from tests.support.sandbox import ROOT, Sandbox, parse_lines

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytestmark = pytest.mark.timeout(240)

EXAMPLE = ROOT / "client" / "examples" / "digits_ddp.py"
RANKS, BATCH, STEPS, EVERY = 4, 32, 6, 2
KILLED = 2
LAST = STEPS
"""The step of which the rank that is killed says nothing, and the others all."""

ARGUMENTS = ("--steps", "50", "--batch-size", str(BATCH), "--representation-every", str(EVERY))
END_S = 150.0
LOOSE = {"condition": 2e-2, "alpha": 2e-3}


class Parts:
    """What each rank has emitted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ranks(self, step: int) -> list[int]:
        """Who has spoken of a step."""
        return [r for r in range(RANKS) if place(self.folder, "train/loss", step, r).exists()]

    def of(self, tag: str, step: int, name: str = "x") -> list[Any]:
        """The values of those in float64, in the order of the ranks."""
        found = [np.load(place(self.folder, tag, step, rank)) for rank in self.ranks(step)]
        return [part[name].astype(np.float64) for part in found]

    def mean_loss(self, step: int) -> float:
        losses = [float(loss) for loss in self.of("train/loss", step)]
        return math.fsum(losses) / len(losses)

    def figures(self, tag: str, step: int) -> dict[str, float]:
        """Those of the concatenated batch."""
        from sidestep.client.statistics import drawn_positions, seed_of

        parts = self.of(tag, step)
        drawn = [drawn_positions(len(x), x.shape[1], seed_of(step), "cpu").numpy() for x in parts]
        has_pair = tag == "train/context"
        expected = reference(
            np.concatenate(parts),
            positions=np.concatenate(drawn),
            paired=np.concatenate(self.of(tag, step, "paired")) if has_pair else None,
        )
        if has_pair:
            expected["loss"] = self.mean_loss(step)
        x = np.concatenate(parts)
        eigenvalues = covariance_eigenvalues(x.reshape(-1, x.shape[-1]))
        # A layer norm leaves one direction empty, and what float32 does not hold is left out.
        rank = int((eigenvalues > eigenvalues[0] * x.shape[-1] * 2.0**-23).sum())
        expected["alpha"] = slope(eigenvalues, min(rank, 100))
        expected["condition"] = eigenvalues[0] / eigenvalues[rank - 1]
        return expected


def launch(sandbox: Sandbox, folder: Path) -> str:
    """Train with four ranks until one is killed, and with it the job; what they have printed."""
    folder.mkdir()
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(RANKS), "-m", "tests.support.recorded_ranks"),
        *(str(folder), f"{KILLED}:{LAST}", str(EXAMPLE), "--name", "ddp", *ARGUMENTS),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=sandbox.env(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=END_S,
        check=False,
    )
    assert done.returncode != 0, "a rank was killed"
    assert "SIGKILL" in done.stderr or "-9" in done.stderr, done.stderr
    return done.stdout + done.stderr


def exported(sandbox: Sandbox, run: str) -> dict[str, dict[int, float]]:
    """What `export` has of a run, by tag and step, each of which is there once."""
    done = sandbox.cli("export", run, "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[int, float]] = {}
    for line in parse_lines(done.stdout):
        curve = found.setdefault(line["tag"], {})
        assert line["step"] not in curve, line
        curve[line["step"]] = float(line["value"])
    return found


def test_four_ranks_of_which_one_is_killed(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Who waits for the dead would wait until the test is over.
    sandbox.serve(SIDESTEP_REDUCE_TIMEOUT_S="600")
    began = time.monotonic()
    said = launch(sandbox, sandbox.root / "parts")
    print(f"torchrun took {time.monotonic() - began:.1f} s")
    parts = Parts(sandbox.root / "parts")
    status = sandbox.await_run("ddp", clients=0)
    sandbox.drain()

    assert [parts.ranks(step) for step in (*range(STEPS), LAST, LAST + 1)] == [
        *[[0, 1, 2, 3]] * STEPS,
        *([0, 1, 3], []),
    ], said
    found = exported(sandbox, "ddp")
    steps = range(LAST + 1)
    means = {step: parts.mean_loss(step) for step in steps}
    assert found["train/loss"] == means, "to the last bit"
    written = read_scalars(sandbox.event_files("ddp"))
    for step, mean in means.items():
        assert written["train/loss", step, bits(mean)] == 1, step
    assert_figures(parts, found)
    assert_marked(sandbox, found)
    every = range(0, LAST + 1, EVERY)
    # Each rank's losses and two representations, rank 0's learning rates, less the killed one's.
    records = RANKS * (len(steps) + 2 * len(every)) + len(steps) - 3
    assert_booked(status, records)
    assert status["records"]["rejected"] == 0
    assert sandbox.outboxes() == []
    assert_as_one_process(sandbox, monkeypatch, {step: means[step] for step in range(STEPS)})


def assert_figures(parts: Parts, found: dict[str, dict[int, float]]) -> None:
    """Every statistic of both representations, and no other."""
    for tag in ("train/context", "train/target"):
        for step in range(0, LAST + 1, EVERY):
            expected = parts.figures(tag, step)
            shown = {
                name.removeprefix(f"{tag}_"): curve[step]
                for name, curve in found.items()
                if name.startswith(f"{tag}_") and step in curve
            }
            assert shown.pop("ranks", RANKS) == len(parts.ranks(step))
            assert shown.keys() == expected.keys(), (tag, step)
            # The statistics of a rank travel in float32, of which small eigenvalues keep little.
            wrong = {
                name: (value, shown[name])
                for name, value in expected.items()
                if shown[name] != pytest.approx(value, rel=LOOSE.get(name, 1e-4), abs=1e-6)
            }
            assert not wrong, (tag, step)


def assert_marked(sandbox: Sandbox, found: dict[str, dict[int, float]]) -> None:
    """What lacks a rank says so, and nothing else does."""
    marks = {tag: curve for tag, curve in found.items() if tag.endswith("_ranks")}
    reduced = ("train/loss", "train/context", "train/target")
    assert marks == {f"{tag}_ranks": {LAST: RANKS - 1.0} for tag in reduced}
    status = sandbox.run_status("ddp")
    assert status is not None
    assert status["reductions"] == {"awaited": 0, "partial": 3, "late": 0, "pushed_out": 0}
    assert {one["rank"]: one["step"] for one in status["ranks"]}.keys() == set(range(RANKS))
    assert status["ranks"][KILLED]["state"] == "lost"


def assert_as_one_process(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, means: dict[int, float]
) -> None:
    """One process that has all of the batch trains the same, and needs nothing put together."""
    for name, value in sandbox.variables().items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SIDESTEP_RUN", "SIDESTEP_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    again = ["--name", "alone", *ARGUMENTS, "--steps", str(len(means))]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *again])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert client.stats().rejected == 0
    sandbox.drain()
    alone = exported(sandbox, "alone")
    assert alone["train/loss"] == pytest.approx(means, rel=1e-4)
    assert alone["train/target_n_rows"][0] == BATCH * 16

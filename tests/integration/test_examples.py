"""The examples run as their first lines say, and what they show is written.

The ports of `MetricsLogger` and `SummaryWriter`, Lightning's and Hugging Face's are in the tests of
those façades; `digits_jepa.py` in `test_collapse_example.py`; `all_values.py` in the browser's.
"""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidestep import client
from tests.support.oracle import read_scalars
from tests.support.sandbox import ROOT, Sandbox

pytestmark = pytest.mark.timeout(120)

EXAMPLES = ROOT / "client" / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
TESTS = ROOT / "tests"
LIBRARIES = {"jepa.py", "collapse.py"}  # parts of digits_jepa.py
DRAWN_BY_HAND = {"collapse_picture.py"}  # the README's picture, of two runs that take minutes


@pytest.fixture
def node(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """A node with a daemon, and this process in its working directory, where results go."""
    for name, value in sandbox.variables().items():
        monkeypatch.setenv(name, value)
    for name in ("SIDESTEP_RUN", "SIDESTEP_LOG_DIR", "SIDESTEP_CONFIG", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SIDESTEP_STRICT", "1")
    monkeypatch.chdir(sandbox.work)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    sandbox.logs = sandbox.work / "results" / "logs"
    sandbox.serve()
    yield sandbox
    client.finish(0)


def run_here(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> None:
    """Run an example in this process, where torch is loaded already."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def curves(node: Sandbox, run: str) -> dict[str, dict[int, int]]:
    """What TensorBoard has of a run, once all is written: tag to step to how often."""
    node.drain()
    found: dict[str, dict[int, int]] = defaultdict(dict)
    for (tag, step, _bits), times in read_scalars(node.event_files(run)).items():
        found[tag][step] = found[tag].get(step, 0) + times
    records = node.run_status(run)
    assert records is not None
    assert records["records"]["rejected"] == records["records"]["dropped"] == 0
    return found


def once(steps: range) -> dict[int, int]:
    return dict.fromkeys(steps, 1)


def test_plain_pytorch_and_an_evaluation_of_its_checkpoint(
    node: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(monkeypatch, "plain_pytorch.py", "--steps", "250")
    trained = curves(node, "spirals")
    assert trained["train/loss"] == trained["train/lr"] == once(range(250))
    assert trained["weights/norm"] == dict.fromkeys((0, 100, 200), 1)

    run_here(monkeypatch, "evaluate_checkpoint.py", "spirals.pt")
    both = curves(node, "spirals")
    assert both["test/accuracy"] == both["test/loss"] == {250: 1}
    assert both["train/loss"] == trained["train/loss"]
    said = re.search(r"accuracy ([\d.]+) at step 250", capsys.readouterr().out)
    assert said
    assert float(said[1]) > 0.8


def test_ddp_on_one_rank(node: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    run_here(monkeypatch, "ddp.py", "--steps", "20")
    found = curves(node, "ddp")
    assert {tag for tag in found if not tag.startswith(("system/", "sidestep/"))} >= {
        *("train/loss", "train/samples", "train/lr")
    }
    assert found["train/loss"] == found["train/samples"] == once(range(20))


def test_ddp_on_two_ranks(node: Sandbox) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", EXAMPLES / "ddp.py", "--steps", "20"],
        cwd=node.work,
        env=node.env(OMP_NUM_THREADS="1", SIDESTEP_LOG_DIR=str(node.logs)),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = curves(node, "ddp")
    for tag in ("train/loss", "train/loss_std", "train/loss_min", "train/loss_max"):
        assert found[tag] == once(range(20)), tag
    assert found["train/samples"] == found["train/lr"] == once(range(20))


def test_the_notebook_also_when_its_cells_run_again(
    node: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", node.env()["PATH"])
    book: dict[str, Any] = json.loads((EXAMPLES / "notebook.ipynb").read_text())
    assert book["nbformat"] == 4
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    assert not [cell for cell in book["cells"] if cell.get("outputs")], "committed with outputs"
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate([cells[0], *cells]):  # who opens one runs the first cell twice
        exec(compile(cell, f"cell {number}", "exec"), names)
    assert "60 losses, from 14.25 to" in capsys.readouterr().out
    assert curves(node, "notebook")["train/loss"] == once(range(60))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_each_example_says_how_to_run_it_and_is_run_by_a_test(script: Path) -> None:
    text = script.read_text()
    if script.name not in LIBRARIES:
        assert f"client/examples/{script.name}" in text.split('"""')[1], "does not say how to run"
    if script.name in DRAWN_BY_HAND:
        return
    tests = [path for path in TESTS.rglob("test_*.py") if path != Path(__file__)]
    others = "".join(path.read_text() for path in [*tests, *TESTS.rglob("conftest.py")])
    stem = script.stem if script.name in LIBRARIES else script.name
    mine = Path(__file__).read_text()
    assert stem in others or f'"{script.name}"' in mine, "no test runs it"

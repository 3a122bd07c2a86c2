"""A SummaryWriter among others: a port of one line, two on one folder, what the rest shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sidestep.client.tensorboard import SummaryWriter
from tests.support.oracle import OWN
from tests.support.sandbox import ROOT, SIDESTEP, Sandbox, parse_lines
from tests.support.tensorboard_view import view

pytestmark = pytest.mark.timeout(120)

EXAMPLE = ROOT / "client/examples/summary_writer_port.py"
ARGUMENTS = ("--steps", "20", "--width", "4", "--log-dir")
T0 = 1_700_000_000.0


@pytest.fixture(scope="module")
def node() -> Iterator[Sandbox]:
    """One daemon for all tests here, and this process connected to it."""
    with Sandbox() as made, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("SIDESTEP_")]:
            patch.delenv(name)
        for name, value in made.variables().items():
            patch.setenv(name, value)
        patch.delenv("SIDESTEP_LOG_DIR")
        made.serve()
        yield made


def test_a_port_is_one_line(node: Sandbox) -> None:
    """Two scripts that differ in their imports alone: TensorBoard has the same runs of both."""
    source = EXAMPLE.read_text()
    ours = "from sidestep.client.tensorboard import SummaryWriter\n"
    theirs = "from torch.utils.tensorboard import SummaryWriter\n"
    assert f"    -{theirs}    +{ours}" in source, "the docstring says which"
    assert source.count(f"\n{ours}") == 1

    job = [*SIDESTEP, "run", "--", sys.executable, EXAMPLE, *ARGUMENTS, "ours"]
    with subprocess.Popen(job, cwd=node.work, env=node.env(), stdout=subprocess.PIPE) as running:
        port: dict[str, object] = {"__name__": "port", "__doc__": "A port."}
        exec(compile(source.replace(f"\n{ours}", f"\n{theirs}"), "port", "exec"), port)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # torch's own
            port["main"]([*ARGUMENTS, str(node.work / "torchs")])  # type: ignore[operator]
        said, _ = running.communicate(timeout=100)
    assert running.returncode == 0
    assert b"accuracy" in said

    found, wanted = view(node.work / "ours"), view(node.work / "torchs")
    assert set(found.runs) == set(wanted.runs)
    assert found.graphs == wanted.graphs
    for run, curves in wanted.runs.items():
        assert set(found.runs[run]) == set(curves), run
        for tag, curve in curves.items():
            own = found.runs[run][tag]
            assert (own.plugin, own.steps) == (curve.plugin, curve.steps), tag
            if curve.plugin == "scalars":  # two processes may add up in different orders
                np.testing.assert_allclose(own.values, curve.values, 1e-3, err_msg=tag)
    embedding = Path("00020", "default", "metadata.tsv")
    files = [(node.work / made / embedding).read_bytes() for made in ("ours", "torchs")]
    assert files[0] == files[1]


def test_two_at_once_on_one_folder(node: Sandbox) -> None:
    """Both write all that they have; a run in between them does not end the other's."""
    folder = node.root / "two" / "exp"
    one, two = SummaryWriter(folder), SummaryWriter(folder)
    for step in range(50):
        one.add_scalar("one/a", step, step, T0 + step)
        two.add_scalar("two/a", step, step, T0 + step)
        one.add_scalars("both", {"one": step}, step, T0 + step)
        two.add_scalars("both", {"two": -step}, step, T0 + step)
    one.close()
    two.add_scalar("two/a", 50, 50, T0 + 50)
    two.close()
    three = SummaryWriter(folder)
    three.add_scalar("one/a", 50, 50, T0 + 50)
    three.close()
    node.drain()
    found = view(folder.parent)
    assert set(found.runs) == {"exp", "exp/both_one", "exp/both_two"}
    for tag in ("one/a", "two/a"):
        assert found.runs["exp"][tag].values == list(range(51))
    assert found.runs["exp/both_one"]["both"].values == list(range(50))
    assert found.runs["exp/both_two"]["both"].values == [-step for step in range(50)]


def test_what_everything_but_tensorboard_calls_them(node: Sandbox) -> None:
    with SummaryWriter(node.root / "tailed") as writer:
        writer.add_scalars("loss", {"train": 1 / 3, "val": 2.0}, 7)
        writer.add_scalar("loss/train", 3.0, 7)
        writer.add_scalar("lr", 0.1, 7, new_style=True)
    node.drain()
    shown = node.cli("export", "tailed", "--format", "jsonl")
    assert shown.returncode == 0, shown.stderr
    lines = parse_lines(shown.stdout)
    numbers = {line["tag"]: line["value"] for line in lines if not line["tag"].startswith(OWN)}
    assert numbers == {"loss/train": 1 / 3, "loss/val": 2.0, "loss/train~2": 3.0, "lr": 0.1}


def test_where_sidesteps_variables_say_so(node: Sandbox) -> None:
    code = """if True:
        import json, os
        from sidestep.client.tensorboard import SummaryWriter
        writer = SummaryWriter(comment="unused")
        writer.add_scalar("a", 1.0, 3)
        print(json.dumps([writer.get_logdir(), os.listdir(writer.get_logdir())]))
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=node.work,
        env=node.env(SIDESTEP_RUN="vit/b"),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    folder, before = json.loads(done.stdout)
    assert before == []
    assert Path(folder).parent == node.logs / "tensorboard"
    node.drain()
    found = view(Path(folder))
    assert found.runs["."]["a"].steps == [3], "not closed: the exit does it"

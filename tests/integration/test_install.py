"""The wheel in clean environments: the base, each extra, all; needs an index, and takes minutes."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from tests.support.sandbox import ROOT, Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
HEAVY = ("torch", "lightning", "transformers", "dev", "fuzz")
"""They bring torch, which is gigabytes on some indexes, or this repository's own tools."""

USER = """
from sidestep import client
run = client.connect("x")
reveal_type(run)
reveal_type(run.stats().emitted)
client.emit({"a": 1.0}, step="one")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.iterdir())


def installed(folder: Path, wheel: Path, extra: str) -> Path:
    """The Python of a new environment with the wheel in it."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    what = f"{wheel}[{extra}]" if extra else str(wheel)
    pins = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([python, "-m", "pip", "install", "-q", *pins, what], check=True, cwd=folder)
    subprocess.run([python, "-m", "pip", "check"], check=True, cwd=folder)
    return python


def run(sandbox: Sandbox, *command: str | Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in sandbox.env().items() if name != "PYTHONPATH"}
    return subprocess.run(
        [os.fspath(part) for part in command],
        cwd=sandbox.work,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


TRAINER = """
from sidestep import client
run = client.connect("clean", autostart=AUTOSTART)
for step in range(10):
    run.emit({"loss": 1 / (step + 1)}, step)
print(run.finish(30 if AUTOSTART else 0), run.stats().emitted)
"""


def test_the_base_is_enough_for_a_trainer(sandbox: Sandbox, tmp_path: Path, wheel: Path) -> None:
    python = installed(tmp_path / "v", wheel, "")
    done = run(sandbox, python, "-W", "error", "-c", TRAINER.replace("AUTOSTART", "False"))
    assert (done.returncode, done.stdout) == (0, "False 10\n"), done.stderr
    done = run(sandbox, python.with_name("sidestep"), "status")
    assert done.returncode == 1
    assert "pip install 'sidestep[sidecar]'" in done.stderr

    user = sandbox.work / "user.py"
    user.write_text(USER)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python)]
    said = run(sandbox, *mypy, "--config-file", os.devnull, user).stdout
    assert 'Revealed type is "sidestep.client.emitter.Client"' in said
    assert 'Revealed type is "int"' in said.replace("builtins.", "")
    assert 'Argument "step" to "emit" has incompatible type "str"' in said


@pytest.mark.parametrize("extra", sorted({*EXTRAS} - {*HEAVY}))
def test_an_extra_in_a_clean_environment(
    extra: str, sandbox: Sandbox, tmp_path: Path, wheel: Path
) -> None:
    python = installed(tmp_path / "v", wheel, extra)
    done = run(sandbox, python, "-c", TRAINER.replace("AUTOSTART", "True"))
    assert (done.returncode, done.stdout) == (0, "True 10\n"), done.stderr
    command = python.with_name("sidestep")
    assert run(sandbox, command, "drain").returncode == 0
    exported = run(sandbox, command, "export", "clean", "--format", "csv").stdout
    assert exported.count(",loss,") == 10
    said = run(sandbox, command, "export", "clean", "--format", "parquet", "-o", "x.parquet")
    if extra in ("parquet", "all"):
        assert said.returncode == 0, said.stderr
    else:
        assert "pip install 'sidestep[parquet]'" in said.stderr

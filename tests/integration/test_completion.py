"""The Tab key: commands, options and the names of runs, in bash and in zsh."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.fixtures import Connect
from tests.support.sandbox import SIDESTEP, Sandbox

pytestmark = pytest.mark.timeout(60)

SCRIPT = """
source <(_SIDESTEP_COMPLETE=source_bash sidestep)
while read -r -a COMP_WORDS; do
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  _sidestep_completion sidestep
  echo "${COMPREPLY[*]}"
done
"""


@pytest.fixture
def commands(sandbox: Sandbox) -> Path:
    """A folder with the console script, which runs what the tests run."""
    folder = sandbox.root / "bin"
    folder.mkdir()
    words = " ".join(SIDESTEP)
    (folder / "sidestep").write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    (folder / "sidestep").chmod(0o755)
    return folder


def in_bash(sandbox: Sandbox, commands: Path, *lines: str) -> list[str]:
    """What bash would offer at the end of each line."""
    env = sandbox.env()
    done = subprocess.run(
        ["bash", "--norc", "-c", SCRIPT],
        input="".join(f"{line}\n" for line in lines),
        env={**env, "PATH": f"{commands}{os.pathsep}{env['PATH']}"},
        cwd=sandbox.work,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_in_bash(sandbox: Sandbox, commands: Path, connect: Connect) -> None:
    sandbox.serve()
    client = connect("vit-b")
    client.emit({"loss": 1.0}, 0)
    assert client.flush(20)
    (sandbox.logs / "scalars" / "vgg").mkdir(parents=True)  # the daemon has forgotten it

    offered = in_bash(
        *(sandbox, commands),
        *("sidestep dra", "sidestep tail --h", "sidestep tail v", "sidestep export vi"),
    )
    assert offered[0].split() == ["drain"]
    assert "--history" in offered[1].split()
    assert offered[2].split() == ["vgg", "vit-b"]
    assert offered[3].split() == ["vit-b"]


def test_without_a_daemon_the_log_directory_is_asked(sandbox: Sandbox, commands: Path) -> None:
    assert in_bash(sandbox, commands, "sidestep export v") == [""]
    (sandbox.logs / "scalars" / "vgg").mkdir(parents=True)
    assert in_bash(sandbox, commands, "sidestep export v") == ["vgg"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_the_script_for_zsh_is_one(sandbox: Sandbox) -> None:
    script = sandbox.cli(_SIDESTEP_COMPLETE="source_zsh").stdout
    done = subprocess.run(["zsh", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_zsh_is_told(sandbox: Sandbox) -> None:
    (sandbox.logs / "scalars" / "vgg").mkdir(parents=True)
    asked = {"_SIDESTEP_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "sidestep export v"}
    assert "vgg" in sandbox.cli(**asked).stdout

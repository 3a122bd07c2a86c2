"""What is released can be installed, imported in silence, and asked for its version."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from trove_classifiers import classifiers

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

HOSTS = ("lightning", "transformers")
"""Façades whose hosts warn of many things when they are imported."""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(target: str, folder: Path, source: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder, cwd=source)
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", folder / "dist", ROOT)) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"sidestep-{PROJECT['version']}"


def test_the_wheel_of_the_sdist_is_the_wheel(sdist: Path, tmp_path: Path) -> None:
    wheels = [build("wheel", tmp_path / name, at) for name, at in (("a", ROOT), ("b", sdist))]
    ours, theirs = ({i.filename: i.CRC for i in zipfile.ZipFile(w).infolist()} for w in wheels)
    assert ours == theirs


def test_the_sdist_can_make_itself(sdist: Path) -> None:
    for name in ("Makefile", "constraints.txt", "LICENSE", "tests/conftest.py", "proto/vectors"):
        assert (sdist / name).exists(), name
    assert not (sdist / "results").exists()


def test_an_index_takes_the_metadata(sdist: Path) -> None:
    said = email.message_from_string((sdist / "PKG-INFO").read_text())
    assert said["Summary"]
    assert "\n" not in said["Summary"]
    assert set(said.get_all("Classifier", [])) <= classifiers
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Description-Content-Type"] == "text/markdown"
    assert str(said.get_payload()).startswith("# sidestep")


def test_every_python_that_is_promised_is_a_classifier() -> None:
    versions = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if ":: 3." in text}
    assert versions == {"3.11", "3.12", "3.13", "3.14"}
    assert PROJECT["requires-python"] == ">=3.11"


def test_the_pins_can_be_installed_together() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    needs = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pins = {canonicalize_name(need.name): str(need.specifier)[2:] for need in needs}
    wrong: list[str] = []
    for name, version in pins.items():
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not installed
        if found.version.partition("+")[0] != version:
            continue  # says nothing of the version that is pinned
        for text in found.requires or ():
            need = Requirement(text)
            pin = pins.get(canonicalize_name(need.name))
            holds = need.marker is None or need.marker.evaluate({"extra": ""})
            if pin and holds and not need.specifier.contains(pin, prereleases=True):
                wrong.append(f"{name}=={version} needs {need}, pinned is {pin}")
    assert wrong == []


def test_nothing_warns_when_it_is_imported() -> None:
    modules = [
        ".".join(path.relative_to(ROOT / room).with_suffix("").parts).removesuffix(".__init__")
        for room in ("proto", "client", "sidecar")
        for path in sorted((ROOT / room / "sidestep").rglob("*.py"))
        if path.stem not in ("__main__", *HOSTS) and "triton" not in path.stem
    ]
    code = f"import importlib\nfor name in {modules!r}:\n    importlib.import_module(name)\n"
    run(sys.executable, "-W", "error", "-c", code)


def test_the_command_says_its_version() -> None:
    said = run(sys.executable, "-m", "sidestep.sidecar", "--version")
    assert said == f"sidestep {metadata.version('sidestep')}\n"


def test_the_changelog_is_one_that_is_kept() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", head) for head in heads[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds

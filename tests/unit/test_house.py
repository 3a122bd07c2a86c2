"""The house stands as drawn: rooms, packaging, who imports whom, what a reader is owed."""

from __future__ import annotations

import ast
import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("proto", "client", "sidecar")
FOLDERS = {*ROOMS, "tests", "deploy"}
MAX_MODULE_LINES = 400

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def package_of(room: str, root: Path = ROOT) -> Path:
    return root / room / "sidestep" / room


def modules_of(room: str) -> list[Path]:
    return sorted(package_of(room).rglob("*.py"))


def all_modules() -> list[Path]:
    return [module for room in ROOMS for module in modules_of(room)]


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


# --- rooms -------------------------------------------------------------------------------------


def test_only_the_designed_folders_are_at_the_top() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: what is tracked cannot be told")
    tracked = run("git", "ls-files", "-z").stdout.split("\0")
    tops = {path.split("/", 1)[0] for path in tracked if "/" in path}
    assert {top for top in tops if not top.startswith(".")} <= FOLDERS


@pytest.mark.parametrize("room", sorted(FOLDERS))
def test_each_room_says_what_it_is_for(room: str) -> None:
    assert (ROOT / room / "README.md").is_file()


@pytest.mark.parametrize("room", ROOMS)
def test_namespace_folder_holds_one_package_and_nothing_else(room: str) -> None:
    # An __init__.py or a py.typed here would speak for all three roots, and hide two of them.
    entries = {entry.name for entry in (ROOT / room / "sidestep").iterdir()}
    assert entries - {"__pycache__"} == {room}


@pytest.mark.parametrize("room", ROOMS)
def test_each_package_is_typed(room: str) -> None:
    assert (package_of(room) / "__init__.py").is_file()
    assert (package_of(room) / "py.typed").is_file()


def test_the_three_roots_make_one_namespace() -> None:
    imports = "import sidestep, sidestep.proto, sidestep.client, sidestep.sidecar"
    done = run(sys.executable, "-c", f"{imports}; print(sidestep.__file__)")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None"


# --- who imports whom --------------------------------------------------------------------------

LINT_IMPORTS = "from importlinter.cli import lint_imports; exit(lint_imports(no_cache=True))"


def test_import_contracts_are_kept() -> None:
    done = run(sys.executable, "-c", LINT_IMPORTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_import_contracts_catch_what_they_forbid(tmp_path: Path) -> None:
    # Every contract at once, broken in a copy: a contract that nothing can break is no contract.
    for room in ROOMS:
        shutil.copytree(ROOT / room / "sidestep", tmp_path / room / "sidestep")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    intruders = {
        "proto": "import torch\nimport sidestep.client",
        "client": "import typer\nimport transformers\nimport sidestep.sidecar",
        "sidecar": "import torch",
    }
    for room, text in intruders.items():
        package_of(room, tmp_path).joinpath("intruder.py").write_text(text)
    package_of("proto", tmp_path).joinpath("circle_a.py").write_text("from . import circle_b")
    package_of("proto", tmp_path).joinpath("circle_b.py").write_text("from . import circle_a")

    roots = ":".join(str(tmp_path / room) for room in ROOMS)
    done = run(sys.executable, "-c", LINT_IMPORTS, cwd=tmp_path, PYTHONPATH=roots)

    assert done.returncode != 0
    contracts = {contract["name"] for contract in PYPROJECT["tool"]["importlinter"]["contracts"]}
    verdicts = " ".join(done.stdout.split())
    kept = {name for name in contracts if f"{name} BROKEN" not in verdicts}
    assert not kept, done.stdout + done.stderr


def test_proto_imports_msgpack_and_the_standard_library_alone() -> None:
    # The linter's contract can only list what is forbidden; this lists what is allowed.
    allowed = {*sys.stdlib_module_names, "msgpack", "sidestep"}
    for module in modules_of("proto"):
        for node in ast.walk(ast.parse(module.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            foreign = {name.partition(".")[0] for name in names} - allowed
            assert not foreign, f"{module.relative_to(ROOT)} imports {foreign}"


def test_importing_the_client_loads_nothing_heavy() -> None:
    code = "import sys; import sidestep.client; print(*sys.modules)"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    heavy = (
        "torch numpy zmq PIL typer rich pydantic tensorboard wandb pynvml lightning transformers"
    )
    assert not set(heavy.split()) & set(done.stdout.split())


# --- what is installed -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("sidestep-*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_three_packages_and_no_stray_file(wheel: zipfile.ZipFile) -> None:
    expected = {
        str(path.relative_to(ROOT / room))
        for room in ROOMS
        for path in [*modules_of(room), package_of(room) / "py.typed"]
    }
    info = f"sidestep-{PYPROJECT['project']['version']}.dist-info"
    metadata = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    assert set(wheel.namelist()) == expected | {f"{info}/{name}" for name in metadata}


def test_wheel_brings_the_command(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    entries = configparser.ConfigParser()
    entries.read_string(wheel.read(name).decode())
    assert dict(entries["console_scripts"]) == {"sidestep": "sidestep.sidecar.__main__:main"}


def test_base_install_needs_msgpack_and_pyzmq_alone(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    needed = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    base = {canonicalize_name(need.name) for need in needed if not need.marker}
    assert base == {"msgpack", "pyzmq"}
    extras = set(metadata.get_all("Provides-Extra", []))
    hosts = {"torch", "lightning", "transformers"}
    parts = {"sidecar", "wandb", "parquet", "mirror", "otlp", "all"}
    assert extras == parts | {"dev", "fuzz"} | hosts


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    """The specifier of each distribution that constraints.txt names."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    needs = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(need.name): str(need.specifier) for need in needs}


def declared() -> list[Requirement]:
    project = PYPROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    needs = [Requirement(line) for line in [*project["dependencies"], *extras]]
    return [need for need in needs if need.name != "sidestep"]


def test_every_pin_is_one_version_of_no_particular_build(pins: dict[str, str]) -> None:
    # "torch==2.13.0+cpu" would be found in one index alone.
    assert not [pin for pin in pins.items() if not re.fullmatch(r"==[^+*,]+", pin[1])]


@pytest.mark.parametrize("need", declared(), ids=str)
def test_what_make_installs_is_pinned_within_its_bounds(
    need: Requirement, pins: dict[str, str]
) -> None:
    assert need.specifier.contains(pins[canonicalize_name(need.name)].removeprefix("=="))


# --- what a reader is owed ---------------------------------------------------------------------


@pytest.mark.parametrize("module", all_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_module_says_in_its_first_line_what_it_does(module: Path) -> None:
    docstring = ast.get_docstring(ast.parse(module.read_text()))
    assert docstring, "no docstring"
    first = docstring.splitlines()[0]
    assert first.endswith("."), f"not a sentence that ends on its line: {first!r}"
    assert len(first.split()) >= 3, f"says too little: {first!r}"


@pytest.mark.parametrize("module", all_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_too_long_to_read(module: Path) -> None:
    lines = len(module.read_text().splitlines())
    assert lines <= MAX_MODULE_LINES, f"{lines} lines: split it by what it does"


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_readme_says_the_command(command: str) -> None:
    assert command in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("target", ["demo", "test", "check", "bench", "help", "clean"])
def test_make_has_the_target(target: str) -> None:
    assert re.search(rf"^{target}:.*## \S", (ROOT / "Makefile").read_text(), re.MULTILINE)

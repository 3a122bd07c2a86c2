"""Python, the packages of each extra, and whether all are of one version."""

from __future__ import annotations

import glob
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Final

from sidestep.proto.limits import PROTOCOL_VERSION

from .finding import Finding, note, ok, warning, wrong
from .scene import Scene

_OLDEST: Final = (3, 11)

_NEEDED: Final = {
    "base": ("msgpack", "zmq"),
    "sidecar": (
        "google_crc32c",
        "numpy",
        "PIL",
        "psutil",
        "pydantic_settings",
        "pynvml",
        "rich",
        "tensorboard",
        "typer",
        "yaml",
    ),
}
_OPTIONAL: Final = {"wandb": "wandb", "parquet": "pyarrow"}


def check(scene: Scene) -> Iterator[Finding]:
    """Look at this Python, and at whose version differs from it."""
    yield from _python()
    yield from _packages()
    yield from _daemon_version(scene)
    for trainer in scene.alive():
        yield from _trainer_version(scene, trainer)


def _own_version() -> str:
    try:
        return version("sidestep")
    except PackageNotFoundError:
        return ""


def _python() -> Iterator[Finding]:
    about = f"Python {platform.python_version()} in {sys.prefix}"
    if sys.version_info < _OLDEST:
        yield wrong(
            "install.python",
            f"{about} is too old: 3.11 or later is needed",
            "python3.11 -m venv .venv && .venv/bin/pip install 'sidestep[all]'",
        )
        return
    yield ok("install.python", f"{about}; sidestep {_own_version() or 'from a source tree'}")


def _packages() -> Iterator[Finding]:
    for extra, modules in _NEEDED.items():
        missing = [name for name in modules if find_spec(name) is None]
        if missing:
            wanted = "sidestep" if extra == "base" else f"'sidestep[{extra}]'"
            yield wrong(
                "install.packages",
                f"the daemon cannot do without {', '.join(missing)}",
                f"{sys.executable} -m pip install {wanted}",
                complaint="nothing",
            )
    have = [extra for extra, name in _OPTIONAL.items() if find_spec(name) is not None]
    lack = [extra for extra in _OPTIONAL if extra not in have]
    text = f"extras: {', '.join(['sidecar', *have])}"
    if lack:
        text += f"; not installed: {', '.join(lack)} (needed for what their names say alone)"
    yield ok("install.extras", text)


def _daemon_version(scene: Scene) -> Iterator[Finding]:
    theirs, ours = str(scene.daemon.get("version") or ""), _own_version()
    if scene.pid and ours and theirs not in ("", ours):
        yield warning(
            "install.daemon",
            f"the daemon is version {theirs}, this command {ours}: it was started before the "
            "update, or from another environment",
            "sidestep stop && sidestep start",
        )


def _trainer_version(scene: Scene, trainer: Mapping[str, Any]) -> Iterator[Finding]:
    run, pid = str(trainer.get("run")), trainer.get("pid")
    low, high = trainer.get("versions") or (PROTOCOL_VERSION, PROTOCOL_VERSION)
    if not low <= PROTOCOL_VERSION <= high:
        yield wrong(
            "install.trainer",
            f"{run}: its trainer (pid {pid}) speaks versions {low} to {high} of the protocol, "
            f"this sidestep version {PROTOCOL_VERSION}",
            "pip install --upgrade sidestep",
            complaint="nothing",
            run=run,
        )
        return
    command = (trainer.get("process") or {}).get("command") or [""]
    theirs, ours = _version_beside(command[0]), scene.daemon.get("version") or _own_version()
    if theirs and ours and theirs != ours:
        yield note(
            "install.trainer",
            f"{run}: its trainer (pid {pid}) has sidestep {theirs}, the daemon {ours}; they "
            "understand each other",
            f"{command[0]} -m pip install sidestep=={ours}",
            run=run,
        )


def _version_beside(python: str) -> str:
    """The version of sidestep that is installed for a Python, as its folders say; "" if unknown."""
    if not os.path.isabs(python):
        return ""
    prefix = os.path.dirname(os.path.dirname(python))
    where = os.path.join(glob.escape(prefix), "lib", "python3*", "site-packages")
    found = glob.glob(os.path.join(where, "sidestep-*.dist-info"))
    name = os.path.basename(found[0]) if len(found) == 1 else ""
    return name.removeprefix("sidestep-").removesuffix(".dist-info")

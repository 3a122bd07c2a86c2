"""W&B: asked for, installed, logged in where the daemon is, online, and what waits for it."""

from __future__ import annotations

import glob
import netrc
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Final
from urllib.parse import urlparse

from .. import wording
from .curves import quoted
from .finding import Finding, note, ok, warning, wrong
from .isolate import doing
from .machine import size
from .scene import RunSeen, Scene

_DEFAULT_URL: Final = "https://api.wandb.ai"
_OFFLINE: Final = ("offline", "dryrun")
_OFF: Final = ("disabled",)


def check(scene: Scene) -> Iterator[Finding]:
    """Look at what the chosen runs asked of W&B, and what stands in the way."""
    here = [run for run in scene.chosen if not run.goes_to]
    wanting = [run for run in here if run.wandb is not None or run.sink("wandb")]
    environ = scene.daemon_environ
    if not wanting:
        yield from _not_asked(scene)
    else:
        installed = find_spec("wandb") is not None
        if not installed:
            yield wrong(
                "wandb.installed",
                f"{_names(wanting)} should go to W&B, and wandb is not installed where the daemon "
                "is",
                "pip install 'sidestep[wandb]' && sidestep stop && sidestep start",
                complaint="wandb",
            )
        yield from _login(scene, wanting, environ)
    for log_dir in dict.fromkeys(run.log_dir for run in here if run.log_dir):
        yield from _waiting(log_dir)


def _not_asked(scene: Scene) -> Iterator[Finding]:
    known = [run for run in scene.chosen if run.asked]
    if known:
        say = note if _has_key(scene.daemon_environ) or scene.wanted else ok
        text = f"{_names(known)}: no W&B was asked for (connect(wandb=None) is the default)"
        if say is note:
            yield note(
                "wandb.off",
                f"{text}; to have it, connect(wandb=True)",
                "grep -rn 'connect(' --include='*.py' .",
                complaint="wandb",
            )
        else:
            yield ok("wandb.off", text)
        return
    try:
        yield ok("wandb.installed", f"wandb {version('wandb')}")
    except PackageNotFoundError:
        yield ok("wandb.installed", "wandb is not installed, and no run asks for it")


def _login(scene: Scene, runs: list[RunSeen], environ: Mapping[str, str]) -> Iterator[Finding]:
    url = environ.get("WANDB_BASE_URL") or _DEFAULT_URL
    mode = (environ.get("WANDB_MODE") or "").lower()
    has_key = _has_key(environ)
    for run in runs:
        asked = str((run.wandb or {}).get("mode") or mode or "online").lower()
        whose = "WANDB_MODE" if (run.wandb or {}).get("mode") is None and mode else "its settings"
        if asked in _OFF:
            yield warning(
                "wandb.mode",
                f"{run.name}: W&B is disabled ({whose}): nothing is sent there, nothing is kept",
                "unset WANDB_MODE; sidestep stop && sidestep start",
                complaint="wandb",
                run=run.name,
            )
        elif asked in _OFFLINE:
            yield note(
                "wandb.mode",
                f"{run.name}: its W&B run is offline ({whose}): it is kept in "
                f"{run.log_dir}/wandb and appears at W&B once it is uploaded",
                f"wandb sync {quoted(os.path.join(run.log_dir, 'wandb'))}/offline-run-*",
                complaint="wandb",
                run=run.name,
            )
        elif not has_key:
            is_live = run.state in ("running", "lost")
            yield (warning if is_live else note)(
                "wandb.login",
                f"{run.name}: nobody is logged in to W&B where the daemon is (no WANDB_API_KEY, "
                f"nothing in ~/.netrc for {urlparse(url).hostname}): the run is kept offline",
                "wandb login && sidestep stop && sidestep start",
                complaint="wandb",
                run=run.name,
            )
        elif (run.sink("wandb") or {}).get("error") is None:
            yield ok("wandb.login", f"{run.name}: online at {url}, with an API key", run=run.name)
    here = scene.environ.get("WANDB_API_KEY")
    if scene.status and here and not environ.get("WANDB_API_KEY") and not has_key:
        yield warning(
            "wandb.environment",
            "WANDB_API_KEY is set in this shell, and was not when the daemon was started",
            "sidestep stop && sidestep start",
            complaint="wandb",
        )


def _has_key(environ: Mapping[str, str]) -> bool:
    """Whether wandb would find an API key, as far as can be told without loading it."""
    if environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(environ.get("WANDB_BASE_URL") or _DEFAULT_URL).hostname or ""
    home = environ.get("HOME") or os.path.expanduser("~")
    for name in (os.environ.get("NETRC") or "", f"{home}/.netrc", f"{home}/_netrc"):
        try:
            if name and netrc.netrc(name).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _waiting(log_dir: str) -> Iterator[Finding]:
    """Offline runs that nobody has uploaded."""
    folder = os.path.join(log_dir, "wandb")
    doing(f"looking for offline W&B runs in {folder}")
    waiting: list[str] = []
    nbytes = 0
    for run in sorted(glob.glob(os.path.join(glob.escape(folder), "offline-run-*"))):
        files = glob.glob(os.path.join(glob.escape(run), "*.wandb"))
        if files and not glob.glob(os.path.join(glob.escape(run), "*.wandb.synced")):
            waiting.append(run)
            nbytes += sum(os.path.getsize(file) for file in files)
    if waiting:
        newest = waiting[-1] if len(waiting) == 1 else os.path.join(folder, "offline-run-*")
        yield note(
            "wandb.offline",
            f"{wording.counted(len(waiting), 'offline W&B run')} ({size(nbytes)}) in {folder} "
            "that nobody has uploaded",
            f"wandb sync {quoted(newest) if len(waiting) == 1 else newest}",
            complaint="wandb",
        )


def _names(runs: list[RunSeen]) -> str:
    names = list(dict.fromkeys(run.name for run in runs))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more

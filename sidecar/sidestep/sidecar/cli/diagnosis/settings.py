"""Configuration file and environment: errors, names that nobody knows, and places that differ."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Final

from sidestep.proto.addresses import is_tcp

from .curves import quoted
from .finding import Finding, note, ok, warning, wrong
from .isolate import doing
from .machine import HIDDEN
from .scene import Scene

_OTHERS: Final = frozenset(
    {"RUN", "LOG_DIR", "RUNTIME_DIR", "CONFIG", "DISABLED", "STRICT", "AUTOSTART", "TRITON"}
)
"""What the environment may say besides the daemon's settings."""

_OF_TESTS: Final = ("TEST_", "CHAOS_", "BENCH_")
_ALIKE: Final = 0.75
_FALSE: Final = ("", "0", "false", "no", "off")


def check(scene: Scene) -> Iterator[Finding]:
    """Look at what is set, here and where the daemon was started."""
    problems = [
        *_disabled(scene),
        *_file(scene),
        *_unknown(scene.environ),
        *_endpoint(scene),
        *_differences(scene),
    ]
    yield from problems
    if not problems:
        count = sum(name.startswith("SIDESTEP_") for name in scene.environ)
        file = scene.environ.get("SIDESTEP_CONFIG")
        yield ok(
            "settings",
            f"{count} SIDESTEP_ variables, "
            + (f"configuration file {file}" if file else "no configuration file"),
        )


def _disabled(scene: Scene) -> Iterator[Finding]:
    if scene.environ.get("SIDESTEP_DISABLED", "").strip().lower() not in _FALSE:
        yield wrong(
            "settings.disabled",
            "SIDESTEP_DISABLED is set in this shell: training that is started here logs nothing",
            "unset SIDESTEP_DISABLED",
            complaint="nothing",
        )


def _file(scene: Scene) -> Iterator[Finding]:
    from ...config import ConfigurationError, load

    path = scene.environ.get("SIDESTEP_CONFIG")
    doing(f"reading the configuration {path}" if path else "reading the settings")
    try:
        load(None, scene.environ)
    except ConfigurationError as error:
        where = f"in {path}, " if path and str(path) not in str(error) else ""
        yield wrong(
            "settings.file",
            f"{where}{error}. No daemon starts with that",
            f"${{EDITOR:-vi}} {quoted(path)}" if path else "env | grep ^SIDESTEP_",
            complaint="nothing",
        )
        return
    started = (scene.daemon.get("process") or {}).get("started_s")
    theirs = scene.daemon_environ.get("SIDESTEP_CONFIG")
    if scene.pid and path and theirs and os.path.abspath(path) == os.path.abspath(theirs):
        changed = os.stat(path).st_mtime
        if isinstance(started, float) and changed > started + 1:
            yield warning(
                "settings.changed",
                f"{path} was changed after the daemon had read it",
                "sidestep stop && sidestep start",
            )


def _unknown(environ: Mapping[str, str]) -> Iterator[Finding]:
    from ...config import SidecarSettings

    known = {name.upper() for name in SidecarSettings.model_fields} | _OTHERS
    for variable in sorted(environ):
        name = variable.removeprefix("SIDESTEP_")
        if name == variable or name in known or name.startswith(_OF_TESTS):
            continue
        # One that is like none may well be somebody's own.
        for close in get_close_matches(name, sorted(known), 1, _ALIKE):
            near = f"SIDESTEP_{close}"
            yield warning(
                "settings.unknown",
                f"nobody knows the variable {variable}; did you mean {near}?",
                f'export {near}="${variable}"; unset {variable}',
            )


def _endpoint(scene: Scene) -> Iterator[Finding]:
    endpoint = scene.environ.get("SIDESTEP_ENDPOINT") or ""
    if not endpoint or scene.paths is None:
        return
    if is_tcp(endpoint):
        if not scene.lives:
            yield note(
                "settings.endpoint",
                f"SIDESTEP_ENDPOINT is {endpoint}: trainers here deliver there, and what is wrong "
                "there `sidestep doctor` says on that machine",
                "unset SIDESTEP_ENDPOINT",
                complaint="nothing",
            )
        return
    listens = {scene.paths.data_endpoint, str(scene.daemon.get("endpoint") or "")}
    if endpoint in listens:
        return
    path = endpoint.removeprefix("ipc://")
    doing(f"looking at {path}")
    there = os.path.exists(path)
    yield wrong(
        "settings.endpoint",
        f"SIDESTEP_ENDPOINT is {endpoint}, where "
        + ("another daemon listens" if there else "nobody listens")
        + f" and trainers deliver to; this shell's daemon listens at {scene.paths.data_endpoint}",
        "unset SIDESTEP_ENDPOINT",
        complaint="nothing",
    )


def _differences(scene: Scene) -> Iterator[Finding]:
    theirs = scene.daemon_environ
    if not scene.pid or theirs is scene.environ:
        return
    told = str(scene.daemon.get("state_dir") or "")
    mine = scene.environ.get("SIDESTEP_STATE_DIR")
    doing(f"comparing {mine} with {told}")
    if mine and told and os.path.realpath(mine) != os.path.realpath(told):
        yield warning(
            "settings.state_dir",
            f"SIDESTEP_STATE_DIR is {mine} here, and the daemon's state is in {told}: what a "
            "trainer from this shell leaves on the disk the daemon does not find",
            f"export SIDESTEP_STATE_DIR={quoted(told)}",
        )
    of_daemon = _daemon_variables()
    for name in sorted(of_daemon):
        here, there = scene.environ.get(name), theirs.get(name)
        if here is not None and HIDDEN not in (here, there) and here != there:
            yield note(
                "settings.differ",
                f"{name} is {here!r} here, and {'not set' if there is None else repr(there)} "
                "for the daemon, which was started with its own",
                "sidestep stop && sidestep start",
            )


def _daemon_variables() -> set[str]:
    """Variables that only the daemon reads, once."""
    from ...config import SidecarSettings

    apart = {"state_dir", "endpoint", "keys"}  # trainers read these, too
    return {
        f"SIDESTEP_{name.upper()}" for name in SidecarSettings.model_fields if name not in apart
    }

"""`sidestep run -- CMD`: a job with its daemon, from its start until everything is written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Annotated

import typer

from sidestep.proto.paths import RuntimePaths

from ..service.terminal import make_printing_harmless
from .common import CommandError, console, environment_paths
from .control_client import Control, NoDaemonError, RefusedError
from .drain import await_drained, deliver_elsewhere, drain_progress
from .launch import ensure_daemon, hold
from .options import ConfigOption, absolute_config

_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


def run(
    command: Annotated[
        list[str],
        typer.Argument(metavar="-- CMD...", help="The training command, after two dashes."),
    ],
    config: ConfigOption = None,
    drain_timeout: Annotated[
        float,
        typer.Option(
            "--drain-timeout",
            metavar="S",
            min=0,
            help="After CMD, wait at most so many seconds until everything is written.",
        ),
    ] = 60.0,
) -> None:
    """Run a training job with its metrics daemon.

    Starts the daemon (or joins the one that runs), runs CMD, waits until every sink has written
    everything, and exits with CMD's exit code. Example:

    `sidestep run -- python train.py --epochs 10`
    """
    from ..outboxes.remote import is_elsewhere

    # When the terminal goes, CMD's end and what it logged still have to be seen to.
    make_printing_harmless()
    paths = environment_paths()
    file = absolute_config(config)
    if is_elsewhere(os.environ.get("SIDESTEP_ENDPOINT")):
        raise typer.Exit(_run_for_elsewhere(command, paths, file, drain_timeout))
    with hold(paths):
        ensure_daemon(paths, file, leave_when_idle=True)
        runtime = {"SIDESTEP_RUNTIME_DIR": paths.directory}
        code = _run_command(command, {**os.environ, **runtime, **_config_variable(file)})
        _drain(Control(paths), file, drain_timeout)
    raise typer.Exit(code)


def _run_for_elsewhere(
    command: list[str], paths: RuntimePaths, config: str | None, timeout_s: float
) -> int:
    """Run CMD, whose daemon is on another machine; what it leaves here is brought there."""
    code = _run_command(command, {**os.environ, **_config_variable(config)})
    try:
        deliver_elsewhere(paths, timeout_s, console(stderr=True).print)
    except CommandError as error:
        print(f"sidestep: {error}. `sidestep drain` tries again", file=sys.stderr)
    return code


def _config_variable(config: str | None) -> dict[str, str]:
    return {"SIDESTEP_CONFIG": config} if config else {}


def _run_command(command: list[str], environ: dict[str, str]) -> int:
    """Run CMD to its end; signals for us are for it."""
    try:
        process = subprocess.Popen(command, env=environ)
    except FileNotFoundError:
        print(f"sidestep: command not found: {command[0]}", file=sys.stderr)
        return _NOT_FOUND
    except OSError as error:
        print(f"sidestep: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return _NOT_EXECUTABLE
    # A terminal's Ctrl-C reaches CMD by itself; we stay to bring home what it logged.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: process.send_signal(number))
    code = process.wait()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    return code if code >= 0 else 128 - code


def _drain(control: Control, config: str | None, timeout_s: float) -> None:
    """Wait until everything is written; what is not, the next daemon writes."""
    try:
        with drain_progress() as show:
            try:
                done = await_drained(control, None, timeout_s, show)
            except NoDaemonError:
                ensure_daemon(control.paths, config, leave_when_idle=True)
                done = await_drained(control, None, timeout_s, show)
    except (CommandError, RefusedError) as error:
        print(f"sidestep: {error}", file=sys.stderr)
        return
    if not done:
        print(
            f"sidestep: not everything was written within {timeout_s:g} s; the daemon goes on. "
            "`sidestep status` shows it",
            file=sys.stderr,
        )

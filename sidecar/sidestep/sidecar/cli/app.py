"""The command `sidestep`: its commands by name, each imported when it is called."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup


@dataclass(frozen=True, slots=True)
class _Entry:
    """A command: the function `name` of the module `name` beside this one."""

    summary: str
    settings: dict[str, Any] = field(default_factory=dict[str, Any])


# The one-line summaries are here, so that `sidestep --help` imports none of the commands.
_COMMANDS: Final = {
    # What follows the first word of CMD is CMD's, also without the `--`.
    "run": _Entry(
        "Run a training job with its metrics daemon.", {"allow_interspersed_args": False}
    ),
    "tail": _Entry("Watch a run's metrics as they come, or pipe them as JSON."),
    "status": _Entry("Is anything wrong? Daemon, runs, sinks, drops, alarms, GPUs."),
    "doctor": _Entry("What is wrong, and which command mends it?"),
    "drain": _Entry("Wait until everything that was logged is written."),
    "export": _Entry("Write out a run's numbers: CSV, JSON lines, Parquet."),
    "replay": _Entry("Run recorded statistics through the collapse alarms' rules."),
    "start": _Entry("Start the daemon in the background."),
    "stop": _Entry("Stop the daemon once everything is written."),
    "serve": _Entry("Run the daemon in the foreground."),
    "keygen": _Entry("Make the keys for trainers on other machines (TCP)."),
}

_SETTINGS: Final = {"help_option_names": ["-h", "--help"]}


class LazyGroup(TyperGroup):
    """Puts the real command in its stub's place at the moment when it is to be run."""

    # Typer has its own copy of click since 0.26, and the types of both have private names.
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that `args` begin with."""
        if args and args[0] in _COMMANDS:
            self.commands[args[0]] = _load(args[0])
        return super().resolve_command(ctx, args)


def _load(name: str) -> Any:
    entry = _COMMANDS[name]
    one = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
    )
    one.command(name, context_settings={**_SETTINGS, **entry.settings})(
        getattr(import_module(f"{__package__}.{name}"), name)
    )
    return typer.main.get_command(one)


def _stub() -> None:
    """Stand for a command in the list of commands."""


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"sidestep {version('sidestep')}")
        except PackageNotFoundError:
            print("sidestep, from a source tree that is not installed")
        raise typer.Exit


def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and leave."
        ),
    ] = False,
) -> None:
    """Metrics of PyTorch training, logged by a daemon beside it.

    Training hands its numbers over without waiting; the daemon writes them to TensorBoard and
    Weights & Biases, and shows them live.

    Start here, in two terminals:

    - `sidestep run -- python train.py`
    - `sidestep tail`
    """


def _build() -> typer.Typer:
    built = typer.Typer(
        cls=LazyGroup,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings=_SETTINGS,
    )
    built.callback()(_options)
    for name, entry in _COMMANDS.items():
        built.command(name, help=entry.summary)(_stub)
    return built


app = _build()

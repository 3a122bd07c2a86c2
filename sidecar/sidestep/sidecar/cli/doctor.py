"""`sidestep doctor`: walks the whole chain, and says of each thing that is wrong what mends it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Final

import typer

from . import wording
from .common import console
from .completion import complete_run
from .diagnosis import COMPLAINTS, Finding, Level, Report, examine

if TYPE_CHECKING:
    from rich.console import Console

_STYLES: Final = {
    Level.OK: "green",
    Level.NOTE: "cyan",
    Level.WARNING: "bold yellow",
    Level.WRONG: "bold red",
}
_MARGIN: Final = 10
"""Columns for the level."""


def doctor(
    logdir: Annotated[
        str | None,
        typer.Option(
            "--logdir",
            metavar="D",
            show_default=False,
            help="The log directory that you look into, or that TensorBoard is opened over: are "
            "the runs there? Default: the directories that the runs log to.",
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUN",
            show_default=False,
            autocompletion=complete_run,
            help="Look at this run alone. Default: those that live, and the newest of the others.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The same as one JSON object, for programs.")
    ] = False,
) -> None:
    """What is wrong, and which command mends it?

    Walks the chain from the trainer to TensorBoard and W&B: installation, daemon, settings,
    directories, trainers, sinks, event files and the curves in them, login, GPUs, memory, clock.
    Starts nothing, changes nothing, and takes a few seconds at most, whatever hangs.

    Exit code 0 when nothing is wrong (warnings may be there), 1 when something is.
    """
    if logdir is not None and not logdir.strip():
        raise typer.BadParameter("expected a directory", param_hint="--logdir")
    if run is not None and not run.strip():
        raise typer.BadParameter("expected the name of a run", param_hint="--run")
    report = examine(os.environ, os.getcwd(), logdir=logdir, run=run)
    if as_json:
        print(json.dumps(_as_json(report)))
    else:
        _show(report, console())
    if report.count(Level.WRONG):
        raise typer.Exit(1)


def _as_json(report: Report) -> dict[str, object]:
    return {
        "ok": not report.count(Level.WRONG),
        "daemon": report.daemon,
        "findings": [
            {"area": area, **finding.as_json()}
            for area, findings in report.areas.items()
            for finding in findings
        ],
        "took_s": round(report.took_s, 3),
    }


def _show(report: Report, out: Console) -> None:
    for area, findings in report.areas.items():
        if findings:
            out.print(area, style="bold")
        for finding in findings:
            _show_one(finding, out)
    out.print()
    wrongs, warnings = report.count(Level.WRONG), report.count(Level.WARNING)
    if not wrongs and not warnings:
        out.print("Nothing is wrong.", style="green")
        return
    parts: list[str] = []
    if wrongs:
        parts.append(f"{wording.count(wrongs)} {'thing is' if wrongs == 1 else 'things are'} wrong")
    if warnings:
        parts.append(wording.counted(warnings, "warning"))
    style = _STYLES[Level.WRONG if wrongs else Level.WARNING]
    out.print(f"{', '.join(parts)}. Begin with the first.", style=style)


def _show_one(finding: Finding, out: Console) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    head = Text(f"  {finding.level.value}".ljust(_MARGIN), _STYLES[finding.level])
    says = Text(finding.says)
    if finding.complaint and finding.level is not Level.OK:
        says.append(f"  [{COMPLAINTS[finding.complaint]}]", "dim")
    if not out.is_terminal:  # whole lines for grep
        out.print(head + says, soft_wrap=True)
    else:
        row = Table.grid(padding=0)
        row.add_column(width=_MARGIN)
        row.add_column(overflow="fold")
        row.add_row(head, says)
        out.print(Padding(row, 0))
    if finding.do:
        # Never broken into lines: it is to be copied.
        out.print(Text(" " * _MARGIN + "$ ", "dim") + Text(finding.do, "bold"), soft_wrap=True)

"""`sidestep export`: a run's numbers, all of them and exact, as CSV, JSON lines or Parquet."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import IO, Annotated, Final

import typer

from ..archive.reader import Run
from . import wording
from .common import CommandError, environment_paths
from .completion import complete_run
from .control_client import Control
from .export_formats import WRITERS
from .export_source import open_source
from .options import TagsOption

_BUFFER_BYTES: Final = 1 << 20


class Format(StrEnum):
    """The formats."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"


def export(
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="The run's name.", autocompletion=complete_run),
    ],
    format: Annotated[  # noqa: A002 - it is the option's name
        Format,
        typer.Option(
            "--format",
            "-f",
            show_default=False,
            help="csv and parquet have the columns run, tag, step, wall_time and value; jsonl has "
            "the lines of `tail --json`.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="F",
            show_default=False,
            help="Write this file, which is there when it is whole. Default: stdout.",
        ),
    ] = None,
    tags: TagsOption = None,
    log_dir: Annotated[
        str | None,
        typer.Option(
            "--log-dir",
            metavar="D",
            show_default=False,
            help="The run's log directory. Default: $SIDESTEP_LOG_DIR, results/logs, and where the "
            "daemon's runs are.",
        ),
    ] = None,
) -> None:
    """Write out the numbers of a run, as exactly as they were emitted (float64).

    wall_time is in seconds since the epoch; NaN and infinities are nan, inf and -inf in CSV, and
    NaN, Infinity and -Infinity in JSON. The points of one tag come in the order in which they were
    emitted. A run that goes on is complete up to what the daemon had when this was called.

    Exit code 1 when there is no such run, and when not all of it could be had: then what there is
    was written, and the last line on stderr says what is missing.
    """
    to_stdout = output in (None, "-")
    if format == Format.PARQUET and to_stdout and sys.stdout.isatty():
        raise CommandError("Parquet is not for a terminal: name a file with -o, or use a pipe")
    source = open_source(Control(environment_paths()), run, log_dir)
    try:
        with _stdout() if output is None or output == "-" else _file(output) as out:
            points = _write(out, format, run, source.run, tags or ())
    except OSError as error:
        if error.errno == errno.EPIPE:
            return  # the reader has seen enough
        raise CommandError(f"cannot export to {output or 'stdout'}: {error}") from error
    if not to_stdout:
        print(f"{wording.counted(points, 'point')} in {output}", file=sys.stderr)
    if wrong := _wrong(source.run, source.missing):
        raise CommandError(wrong)


def _write(
    out: IO[bytes], name: Format, run_name: str, run: Run | None, tags: Sequence[str]
) -> int:
    """Write the points; how many there are."""
    writer = WRITERS[name](out, run_name)
    points = 0
    for block in run.blocks(tags) if run is not None else ():
        writer.add(block)
        points += block.values.size
    writer.close()
    return points


def _wrong(run: Run | None, missing: str | None) -> str | None:
    """What is missing in what was written, as sentences."""
    damage = [] if run is None else list(map(str, run.damage))
    return "\n".join([*damage, *([missing] if missing else [])]) or None


@contextmanager
def _stdout() -> Generator[IO[bytes]]:
    """Stdout; when its reader leaves, nothing complains at exit."""
    out = sys.stdout.buffer
    try:
        yield out
        out.flush()
    except BrokenPipeError:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
        raise


@contextmanager
def _file(output: str) -> Generator[IO[bytes]]:
    """The file `output`: the whole of it or, after a failure, what was there before."""
    path = os.path.realpath(output)  # what a link points at is replaced, not the link
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        with open(path, "wb", _BUFFER_BYTES) as out:  # a device or a pipe cannot be replaced
            yield out
        return
    draft = f"{path}.{os.getpid()}.part"
    with open(draft, "xb", _BUFFER_BYTES) as out:
        try:
            yield out
            out.flush()
            os.replace(draft, path)
        except BaseException:
            os.unlink(draft)
            raise

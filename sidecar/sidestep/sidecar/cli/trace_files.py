"""Reads numbers back from what `sidestep export` and `sidestep tail --json` have written."""

from __future__ import annotations

import csv
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

from ..alarms import TracePoint
from . import wording
from .common import CommandError

_COLUMNS: Final = ("run", "tag", "step", "wall_time", "value")
_PARQUET: Final = "PAR1"


def read_points(path: str) -> Iterator[TracePoint]:
    """The finite numbers in a file; of ``-``, of the standard input.

    Raises:
        CommandError: it cannot be read, or is neither CSV nor JSON lines; says where.
    """
    if path == "-":
        yield from _points(sys.stdin, "the standard input")
        return
    shown = wording.printable(path)
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            yield from _points(file, shown)
    except OSError as error:
        raise CommandError(f"cannot read {shown}: {error.strerror}") from None


def _points(lines: Iterable[str], name: str) -> Iterator[TracePoint]:
    lines = iter(lines)
    first = next(lines, "")
    if first.startswith(_PARQUET):
        raise CommandError(f"{name} is Parquet: export it with --format csv or jsonl")
    rows = _json_rows if first.lstrip().startswith("{") else _csv_rows
    for number, row in rows(itertools.chain([first], lines), name):
        try:
            point = TracePoint(
                str(row["run"]),
                str(row["tag"]),
                int(row["step"]),
                float(row["wall_time"]),
                float(row["value"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CommandError(
                f"{name}, row {number}: expected {', '.join(_COLUMNS)} ({error!r:.100})"
            ) from None
        if math.isfinite(point.value):
            yield point


def _json_rows(lines: Iterable[str], name: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise CommandError(f"{name}, row {number} is no JSON: {error}") from None


def _csv_rows(lines: Iterable[str], name: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(lines)
    if not set(_COLUMNS) <= set(reader.fieldnames or ()):
        raise CommandError(f"{name} has no head with the columns {', '.join(_COLUMNS)}")
    yield from enumerate(reader, 2)

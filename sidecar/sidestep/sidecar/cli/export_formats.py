"""Blocks of numbers as CSV, JSON lines or Parquet: written as they come, in bounded memory.

Text is joined from columns of pieces, each made at once for a whole block: what a record's numbers
have in common is formatted once, and of a number only its float. Floats are written as `repr`
writes them, which reads back as the same float64.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import IO, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from ..rows.points import ScalarBlock, wall_times_s
from .common import CommandError

COLUMNS: Final = ("run", "tag", "step", "wall_time", "value")

_TEXT_POINTS: Final = 1 << 14
"""Points that are made to text at once: a few megabytes, in the cache as far as there is one."""

_ROW_GROUP_POINTS: Final = 1 << 19
"""Points of one row group in Parquet: some 12 MiB before compression."""

_NON_FINITE: Final = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
"""Python's words for them, and those that Python's `json` writes and reads."""


class Writer(Protocol):
    """Writes blocks of one run in one format."""

    def add(self, block: ScalarBlock) -> None:
        """Write a block's points, record by record."""

    def close(self) -> None:
        """Write what belongs to the end; the file stays open."""


class TextWriter:
    """Lines, one for each point.

    Args:
        out: where they go.
        header: what comes before them.
        head: makes what a line begins with, for a tag.
        record: makes what follows, for the step and the wall time of a record.
        number: makes the texts of floats.
        tail: what a line ends with.
    """

    def __init__(
        self,
        out: IO[bytes],
        header: str,
        head: Callable[[str], str],
        record: Callable[[int, str], str],
        number: Callable[[npt.NDArray[np.float64]], list[str]],
        tail: str,
    ) -> None:
        self._out = out
        self._head = head
        self._record = record
        self._number = number
        self._tail = tail
        out.write(header.encode())

    def add(self, block: ScalarBlock) -> None:
        """Write a block's points, record by record."""
        heads = [self._head(tag) for tag in block.tags]
        width = len(heads)
        height = max(1, _TEXT_POINTS // width)
        for top in range(0, len(block.steps), height):
            rows = slice(top, top + height)
            steps = block.steps[rows].tolist()
            times = self._number(wall_times_s(block.times_ns[rows]))
            values = self._number(block.values[rows].reshape(-1))
            pieces = [self._tail] * (4 * len(values))
            pieces[0::4] = heads * len(steps)
            records = list(map(self._record, steps, times))
            for column in range(width):
                pieces[4 * column + 1 :: 4 * width] = records
            pieces[2::4] = values
            self._out.write("".join(pieces).encode("utf-8", "replace"))

    def close(self) -> None:
        """Nothing belongs to the end."""


def csv_writer(out: IO[bytes], run: str) -> Writer:
    """Columns run, tag, step, wall_time, value; a head of their names; fields quoted at need."""

    def head(tag: str) -> str:
        text = io.StringIO()
        csv.writer(text).writerow((run, tag))
        return text.getvalue().removesuffix("\r\n") + ","

    header = ",".join(COLUMNS) + "\n"
    return TextWriter(out, header, head, "{},{},".format, _reprs, "\n")


def jsonl_writer(out: IO[bytes], run: str) -> Writer:
    """The lines of `sidestep tail --json`."""
    first = f'{{"run": {json.dumps(run)}, "tag": '
    return TextWriter(
        out,
        "",
        lambda tag: f'{first}{json.dumps(tag)}, "step": ',
        '{}, "wall_time": {}, "value": '.format,
        _json_floats,
        "}\n",
    )


def _reprs(numbers: npt.NDArray[np.float64]) -> list[str]:
    return list(map(float.__repr__, numbers.tolist()))


def _json_floats(numbers: npt.NDArray[np.float64]) -> list[str]:
    texts = _reprs(numbers)
    for at in np.flatnonzero(~np.isfinite(numbers)).tolist():
        texts[at] = _NON_FINITE[texts[at]]
    return texts


class ParquetWriter:
    """Columns run and tag (dictionaries of text), step (int64), wall_time and value (float64)."""

    def __init__(self, out: IO[bytes], run: str) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ModuleNotFoundError:
            raise CommandError(
                "--format parquet needs pyarrow. Install it with:\n"
                "  pip install 'sidestep[parquet]'"
            ) from None
        text = pa.dictionary(pa.int32(), pa.string())
        types = (text, text, pa.int64(), pa.float64(), pa.float64())
        self._schema = pa.schema(list(zip(COLUMNS, types, strict=True)))
        self._pa = pa
        self._run = run
        self._tags: dict[str, int] = {}
        self._parts: list[tuple[Any, ...]] = []
        self._points = 0
        # Where run and tag repeat, a dictionary is all that they cost; numbers seldom repeat.
        self._sink = pa.PythonFile(_Counting(out), mode="w")
        options: dict[str, Any] = {"use_dictionary": ["run", "tag"]}
        self._writer = pq.ParquetWriter(self._sink, self._schema, **options)

    def add(self, block: ScalarBlock) -> None:
        """Take a block's points, record by record."""
        for part in _parts(block, max(1, _ROW_GROUP_POINTS // len(block.tags))):
            height, width = part.values.shape
            codes = [self._tags.setdefault(tag, len(self._tags)) for tag in part.tags]
            self._parts.append(
                (
                    np.tile(np.array(codes, np.int32), height),
                    np.repeat(part.steps, width),
                    np.repeat(wall_times_s(part.times_ns), width),
                    part.values.reshape(-1),
                )
            )
            self._points += part.values.size
            if self._points >= _ROW_GROUP_POINTS:
                self._write()

    def close(self) -> None:
        """Write the last row group, and where all of them are."""
        if self._points:
            self._write()
        self._writer.close()

    def _write(self) -> None:
        codes, *numbers = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        run = self._text(np.zeros(len(codes), np.int32), [self._run])
        columns = [run, self._text(codes, list(self._tags)), *map(self._pa.array, numbers)]
        self._writer.write_table(self._pa.Table.from_arrays(columns, schema=self._schema))
        self._parts, self._points, self._tags = [], 0, {}

    def _text(self, codes: npt.NDArray[np.int32], words: list[str]) -> Any:
        pa = self._pa
        return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(words, pa.string()))


def _parts(block: ScalarBlock, height: int) -> Iterator[ScalarBlock]:
    for top in range(0, len(block.steps), height):
        rows = slice(top, top + height)
        yield ScalarBlock(block.tags, block.steps[rows], block.times_ns[rows], block.values[rows])


class _Counting:
    """A file that knows where it is, also when it is a pipe."""

    closed = False

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._at = 0

    def write(self, data: bytes) -> int:
        self._out.write(data)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None:
        self._out.flush()

    def close(self) -> None:
        """Whoever opened the file closes it."""


WRITERS: Final[dict[str, Callable[[IO[bytes], str], Writer]]] = {
    "csv": csv_writer,
    "jsonl": jsonl_writer,
    "parquet": ParquetWriter,
}

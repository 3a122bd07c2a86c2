"""A run's rows in a journal, and a worker's life over them, which may end anywhere in it."""

from __future__ import annotations

import queue
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from sidestep import client
from sidestep.client.values import EmitContext, Prepared, to_host
from sidestep.proto import RunSpec, Value as ValueRecord
from sidestep.proto.records import Scalars, decode_value, encode_scalars, encode_value
from sidestep.sidecar import worker as worker_module
from sidestep.sidecar.archive.reader import find_run
from sidestep.sidecar.journal.reader import JournalReader, Row
from sidestep.sidecar.journal.writer import ClientRow, Journal
from sidestep.sidecar.sinks.archive import ArchiveSink
from sidestep.sidecar.sinks.base import Sink
from sidestep.sidecar.sinks.tensorboard import TensorBoardSink
from sidestep.sidecar.supervision.cursor_file import Cursor, load
from sidestep.sidecar.worker import Worker

RUN: Final = "a/run"
_SECOND: Final = 1_700_000_000
_TIME_NS: Final = _SECOND * 10**9
_TAGS: Final = (("loss", "lr"), ("acc", "adam/x", "adam/y"))
_EVENTS: Final = re.compile(r"(events\.out\.tfevents\.\d+|scalars\.\d+)\..*")

# A commit for each row, or a short script would have one only.
worker_module._BACKOFF_FIRST_S = 0.0001  # type: ignore[misc]
worker_module._POLL_S = 0.01  # type: ignore[misc]


class _Reader(JournalReader):
    def rows(self, after: int, *arguments: Any, **named: Any) -> list[Row]:
        return super().rows(after, *arguments, **{**named, "max_bytes": 1})


worker_module.JournalReader = _Reader  # type: ignore[misc]


def number(step: int, column: int) -> float:
    """The value of a tag set's column at a step: hardly one of them fits into a float32."""
    return (step * 7 + column) / 997.0


def expected(rows: int) -> Iterable[tuple[str, int, float]]:
    """All numbers of a journal's first rows, with their steps."""
    for row in range(rows):
        for step in (2 * row, 2 * row + 1):
            for column, tag in enumerate(_TAGS[row % 2]):
                yield tag, step, number(step, column)


def shown(rows: int) -> Iterable[tuple[str, int, float]]:
    """The same, as TensorBoard shows them: after a while one tag in a folder of its own."""
    for tag, step, value in expected(rows):
        yield "adam" if tag == "adam/x" and step >= 4 else tag, step, value
    yield "acc", 8, 0.5  # the metric of the hyperparameters


def fill(path: str, log_dir: str, rows: int) -> None:
    """A journal with a run of so many rows: numbers in each of them, and values of many kinds."""
    journal = Journal(path)
    journal.begin()
    run = journal.put_run(RunSpec(RUN, log_dir))
    row = ClientRow(0, b"u" * 16, run, 0, 0, 1, "live", 0, 0, 0, 0, None)
    client_id = journal.put_client(row)
    for tag_set, tags in enumerate(_TAGS):
        journal.put_tag_set(client_id, tag_set, tags)
    for i in range(rows):
        data = b"".join(_numbers(i % 2, step) for step in (2 * i, 2 * i + 1))
        kinds: list[str] = []
        if i < len(_VALUES):
            record, kind = _value(*_VALUES[i], step=2 * i)
            data += record
            kinds.append(kind)
        journal.append(run, client_id, 2 + len(kinds), data, kinds)
    journal.commit()
    journal.close()


def _numbers(tag_set: int, step: int) -> bytes:
    values = tuple(number(step, column) for column in range(len(_TAGS[tag_set])))
    return encode_scalars(Scalars(tag_set, step, _TIME_NS + step, values))


_PIXELS: Final = np.arange(3 * 8 * 8, dtype=np.uint8).reshape(3, 8, 8)
_VALUES: Final[list[tuple[str, Any]]] = [
    ("note", client.Text("first")),
    # From here on the parts of "adam" are drawn in folders of their own.
    (
        "adam/x",
        ("series", {"folder": "adam_x", "name": "adam", "new_style": False, "double": False}),
    ),
    ("picture", client.Image(_PIXELS)),
    ("vectors", client.Embedding(np.eye(4, 3, dtype=np.float32), metadata=list("abcd"))),
    ("hparams", client.HParams({"lr": 0.1}, {"acc": 0.5})),
    ("vectors", client.Embedding(np.eye(5, 3, dtype=np.float32))),
]


def _value(tag: str, value: Any, step: int) -> tuple[bytes, str]:
    if isinstance(value, tuple):
        kind, info = value
        record = ValueRecord(kind, tag, step, _TIME_NS, info)
    else:
        prepared = value.prepare(EmitContext(step, {}))
        assert isinstance(prepared, Prepared)
        arrays = [to_host(array) for array in prepared.arrays]
        record = ValueRecord(prepared.kind, tag, step, _TIME_NS, prepared.info, arrays)
    return b"".join(encode_value(record)[1]), record.kind


def warm_up() -> None:
    """Import what rendering imports late."""
    from sidestep.sidecar.sinks.tensorboard_values import IGNORED, rendered_of

    for tag, value in _VALUES:
        shown = decode_value(_value(tag, value, 0)[0])
        if shown.kind not in IGNORED and shown.kind != "series":
            for file in rendered_of(shown).files:
                b"".join(file.content(None))


# --- a worker's life -----------------------------------------------------------------------------


def _make(name: str) -> Sink:
    return ArchiveSink() if name == "archive" else TensorBoardSink(clock=lambda: float(_SECOND))


def cursor_path(root: str, sink: str) -> str:
    """Where a sink's cursor is; beside what the sink writes, so that it is disturbed, too."""
    return f"{root}/{sink}.cursor"


def work(say: Callable[[Any], None], *, journal: str, root: str, sink: str) -> None:
    """Write what the journal has from the cursor on, and close: as a worker does for a daemon."""
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    reader = JournalReader(journal)
    ((run_id, spec),) = reader.runs().items()
    last = reader.total(run_id)
    reader.close()

    def report(message: dict[str, Any]) -> None:
        say([message["state"], message["row"]])
        if message["state"] == "ok" and message["total"] == last:
            inbox.put({"op": "close", "finished": True})

    worker = Worker(sink, run_id, spec, journal, cursor_path(root, sink), report, _make)
    assert worker.serve(inbox)


def tree(root: Path) -> dict[str, list[bytes]]:
    """What all files below a folder hold, but cursors; of names that hold a pid only the kind."""
    found: dict[str, list[bytes]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix != ".cursor":
            name = str(path.relative_to(root).with_name(_EVENTS.sub(r"\1", path.name)))
            found.setdefault(name, []).append(path.read_bytes())
    return found


def cursor(journal: str, root: Path, sink: str) -> Cursor:
    """Where a sink stands."""
    reader = JournalReader(journal)
    try:
        return load(cursor_path(str(root), sink), reader.identity())
    finally:
        reader.close()


def archived(root: Path) -> Iterable[tuple[str, int, float]]:
    """All numbers of the run's archive below a log directory."""
    archive = find_run(root, RUN)
    assert archive is not None
    for block in archive.blocks():
        for step, row in zip(block.steps.tolist(), block.values.tolist(), strict=True):
            for tag, value in zip(block.tags, row, strict=True):
                yield tag, step, value
    assert archive.damage == []

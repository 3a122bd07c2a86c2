"""What must be in the event files, what TensorBoard's own reader finds there, the difference."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import (
    EventFileLoader,
    LegacyEventFileLoader,
)

Point = tuple[str, int, int]
"""A tag, a step, and the bits of the value as float32: NaN equals itself, and -0.0 is not 0.0."""

OWN = ("system/", "sidestep/")
"""Tags that begin so are the daemon's."""

_MAX_EXAMPLES = 5


def bits(value: float) -> int:
    """The bits of `value` as TensorBoard stores it; all NaN are one."""
    if math.isnan(value):
        return 0x7FC00000
    with np.errstate(over="ignore", under="ignore"):
        return int(np.float32(value).view(np.uint32))


def points(rows: Iterable[tuple[str, int, float]]) -> Counter[Point]:
    """Emitted numbers, as they must be found."""
    return Counter((tag, step, bits(value)) for tag, step, value in rows)


def read_scalars(files: Iterable[Path]) -> Counter[Point]:
    """All scalars in event files but the daemon's own, each with how often it is there."""
    found: Counter[Point] = Counter()
    for path in files:
        assert_whole(path)
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                is_scalar = value.metadata.plugin_data.plugin_name == "scalars"
                if is_scalar and not value.tag.startswith(OWN):
                    found[value.tag, event.step, bits(value.tensor.float_val[0])] += 1
    return found


def read_values(files: Iterable[Path]) -> list[tuple[int, float, Any]]:
    """Step, wall time and summary of every value in event files, unchanged."""
    return [
        (event.step, event.wall_time, value)
        for path in files
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


def assert_whole(path: Path) -> None:
    """The file ends where a record ends: TensorBoard's reader would say nothing of a torn one."""
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(8)
            assert len(head) == 8, f"{path} ends inside a record's head, at byte {at} of {size}"
            at += 8 + 4 + struct.unpack("<Q", head)[0] + 4
    assert at == size, f"{path} ends inside a record: at byte {size} of {at}"


def assert_exactly(found: Counter[Point], emitted: Counter[Point]) -> None:
    """Everything that was emitted is there exactly once for each time, and nothing else is."""
    missing, extra = emitted - found, found - emitted
    assert missing == extra == Counter(), (
        f"of {emitted.total()} emitted: {missing.total()} missing {_examples(missing)}, "
        f"{extra.total()} too many {_examples(extra)}"
    )


def _examples(some: Counter[Point]) -> str:
    shown = sorted(some.items(), key=lambda item: (item[0][1], item[0][0]))
    texts = [f"{tag}@{step} ×{count}" for (tag, step, _), count in shown]
    if len(texts) <= 2 * _MAX_EXAMPLES:
        return str(texts)
    return f"{texts[:_MAX_EXAMPLES]}…{texts[-_MAX_EXAMPLES:]}"


# --- the books ---------------------------------------------------------------------------------


def assert_balanced(stats: Mapping[str, int]) -> None:
    """A client's books: emitted = acked + held + dropped, of records and of bytes."""
    for unit in ("", "_bytes"):
        parts = [stats[name + unit] for name in ("acked", "held", "dropped")]
        assert min(parts) >= 0, stats
        assert stats["emitted" + unit] == sum(parts), stats


def assert_booked(status: Mapping[str, Any], emitted: int, dropped: int = 0) -> None:
    """A run's books in `status`, when all that was emitted has arrived or was dropped."""
    books = status["records"]
    assert books["durable"] + books["held"] + books["dropped"] == emitted, (books, emitted)
    assert books["dropped"] == dropped, (books, dropped)
    assert books["held"] == 0, books

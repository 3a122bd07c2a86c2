"""Where the scalars of a tag are drawn, when that is not under their own name in the run's folder.

`SummaryWriter.add_scalars` draws each of its numbers in a folder of its own, and `add_scalar` can
write them as tensors. A value of kind ``series`` says so of its tag, once; all scalars that come
after it under this tag go there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np

from sidestep.proto import Value
from sidestep.proto.limits import MAX_TAG_BYTES

from ..rows.points import ScalarBlock, wall_times_s
from .event_file import record
from .folder_log import is_safe_folder, safe_folder

_MAX_SERIES: Final = 4096
"""They are stored with every commit."""

_MAX_CACHED: Final = 256
"""Tuples of tags of which it is remembered how they are divided."""

PLAIN, FLOAT, DOUBLE = "", "float", "double"


@dataclass(frozen=True, slots=True)
class Series:
    """Where the scalars of a tag go.

    Attributes:
        folder: below the run's, made safe; "" is the run's own.
        name: the tag that they are drawn under.
        style: `PLAIN` (simple_value), or a tensor of `FLOAT` or `DOUBLE`.
    """

    folder: str
    name: str
    style: str = PLAIN


Columns = tuple[str, str, tuple[str, ...], list[int]]
"""Folder, style, names and columns of the part of a block that goes to one place."""


class SeriesTable:
    """The series of one run, by the tags that they are emitted under."""

    def __init__(self, state: object = None) -> None:
        """Begin with what `state` returned; anything else is none."""
        self._series: dict[str, Series] = {}
        self._plans: dict[tuple[str, ...], list[Columns]] = {}
        if isinstance(state, dict):
            for tag, fields in cast("dict[object, object]", state).items():
                match fields:
                    case [str(folder), str(name), str(style)] if isinstance(tag, str):
                        if not folder or is_safe_folder(folder):
                            self._series[tag] = Series(folder, name, style)
                    case _:
                        pass

    def __len__(self) -> int:
        return len(self._series)

    def state(self) -> dict[str, list[str]]:
        """All of it in MessagePack's types."""
        return {tag: [s.folder, s.name, s.style] for tag, s in self._series.items()}

    def learn(self, value: Value) -> bool:
        """Take a directive; whether it changed anything.

        Raises:
            TypeError: its folder or its name is no text.
            ValueError: one of them cannot be used, or there are too many series.
        """
        info = value.info
        folder, name = info.get("folder") or "", info.get("name") or value.tag
        if not isinstance(folder, str) or not isinstance(name, str):
            raise TypeError(f"a series has a folder and a name, not {folder!r:.99}, {name!r:.99}")
        if len(name.encode("utf-8", "replace")) > MAX_TAG_BYTES:
            raise ValueError(f"a series' name has at most {MAX_TAG_BYTES} bytes")
        style = DOUBLE if info.get("double") else FLOAT
        series = Series(safe_folder(folder), name, style if info.get("new_style") else PLAIN)
        own = Series("", value.tag)
        if self._series.get(value.tag, own) == series:
            return False
        if series == own:
            del self._series[value.tag]
        elif value.tag not in self._series and len(self._series) >= _MAX_SERIES:
            raise ValueError(f"over {_MAX_SERIES} series: the scalars stay under their own tag")
        else:
            self._series[value.tag] = series
        self._plans.clear()
        return True

    def divided(self, block: ScalarBlock) -> Iterator[tuple[str, str, ScalarBlock]]:
        """Yield folder, style and scalars of each part of `block`, under the names to be drawn."""
        plan = self._plans.get(block.tags)
        if plan is None:
            if len(self._plans) >= _MAX_CACHED:
                self._plans.clear()
            plan = self._plans[block.tags] = self._plan(block.tags)
        for folder, style, names, columns in plan:
            yield (
                folder,
                style,
                ScalarBlock(names, block.steps, block.times_ns, block.values[:, columns]),
            )

    def _plan(self, tags: tuple[str, ...]) -> list[Columns]:
        places: dict[tuple[str, str], tuple[list[str], list[int]]] = {}
        for column, tag in enumerate(tags):
            series = self._series.get(tag) or Series("", tag)
            names, columns = places.setdefault((series.folder, series.style), ([], []))
            names.append(series.name)
            columns.append(column)
        return [(*place, tuple(names), columns) for place, (names, columns) in places.items()]


def tensor_records(block: ScalarBlock, style: str) -> Iterator[bytes]:
    """Yield the records of `block` with each number as a tensor, as new writers write scalars."""
    from tensorboard.compat.proto import event_pb2, types_pb2

    # Their members are made at import: no type checker sees them.
    events, types = cast("Any", event_pb2), cast("Any", types_pb2)
    with np.errstate(all="ignore"):
        values = block.values if style == DOUBLE else block.values.astype(np.float32)
    columns = (block.steps.tolist(), wall_times_s(block.times_ns).tolist(), values.tolist())
    for step, wall_time, numbers in zip(*columns, strict=True):
        event = events.Event(wall_time=wall_time, step=step)
        for name, number in zip(block.tags, numbers, strict=True):
            shown = event.summary.value.add(tag=name)
            shown.metadata.plugin_data.plugin_name = "scalars"
            if style == DOUBLE:
                shown.tensor.dtype = types.DT_DOUBLE
                shown.tensor.double_val.append(number)
            else:
                shown.tensor.dtype = types.DT_FLOAT
                shown.tensor.float_val.append(number)
        yield record(event.SerializeToString())

"""A worker's part for the archive sink, and archives as lists of points that compare to the bit."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sidestep.proto import RunSpec
from sidestep.proto.naming import safe_name
from sidestep.sidecar.archive.reader import Run, find_run
from sidestep.sidecar.rows.points import Points, ScalarBlock
from sidestep.sidecar.sinks.archive import ArchiveSink
from sidestep.sidecar.sinks.base import SinkContext, SinkState

Exact = tuple[str, int, int, bytes]
"""Tag, step, time in ns, the float64's bytes: NaN equals itself, and -0.0 is not 0.0."""


def exact(points: Iterable[Points]) -> list[Exact]:
    """The points of blocks, record by record."""
    return [
        (tag, step, time_ns, struct.pack("<d", value))
        for block in points
        if isinstance(block, ScalarBlock)
        for step, time_ns, row in zip(
            block.steps.tolist(), block.times_ns.tolist(), block.values.tolist(), strict=True
        )
        for tag, value in zip(block.tags, row, strict=True)
    ]


def by_tag(points: Iterable[Exact]) -> dict[str, list[Exact]]:
    """The points of each tag in their order, which is what a reader promises."""
    found: dict[str, list[Exact]] = {}
    for point in points:
        found.setdefault(point[0], []).append(point)
    return found


@dataclass
class Home:
    """The log directory, and what a worker stored."""

    log_dir: Path
    run: str = "a/run"
    state: SinkState | None = None
    cursor: int = 0
    said: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.log_dir / "scalars" / safe_name(self.run)

    @property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("scalars.*"))

    def save(self, state: SinkState) -> None:
        self.state = dict(state)

    def open(self, sink: ArchiveSink | None = None) -> ArchiveSink:
        sink = sink or ArchiveSink()
        spec = RunSpec(self.run, str(self.log_dir))
        sink.open(SinkContext(spec, safe_name(self.run), self.state, self.save, self.said.append))
        return sink

    def commit(self, sink: ArchiveSink) -> None:
        self.state = sink.commit()

    def write(self, *points: Points) -> None:
        """A worker's whole life: open, write, commit, close."""
        sink = self.open()
        sink.write(points)
        self.commit(sink)
        sink.close(finished=True)

    def archive(self) -> Run:
        found = find_run(self.log_dir, self.run)
        assert found is not None
        return found

    def read(self) -> list[Exact]:
        """All that is there; nothing may be damaged."""
        archive = self.archive()
        points = exact(archive.blocks())
        assert archive.damage == []
        return points

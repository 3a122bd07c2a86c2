"""Reads the numbers of a run back as they were emitted, in float64, from a log directory.

The daemon keeps them under ``LOG_DIR/scalars/RUN`` (`sinks.archive`); `sidestep export` is written
with what is here, and so can be a notebook::

    from sidestep.sidecar.archive.reader import find_run, runs

    print([run.name for run in runs("results/logs")])
    run = find_run("results/logs", "vit-b")
    for block in run.blocks(tags=["train/*"], first_step=1000):
        print(block.tags, block.steps, block.values)     # numpy arrays, (n,) and (n, k)
    for tag, step, wall_time_s, value in run.points():
        ...

Memory does not grow with the length of a run: a file is read in pieces of 1 MiB, and small blocks
are put together while they lie in one piece, those of many tag sets in turn while all have 4 MiB
together. What was emitted after the call is left out. A file whose end is torn, or in which a bit
was flipped, gives all that comes before; what could not be read is noted in `Run.damage`, and the
next file is gone on with. Every number has passed a checksum.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sidestep.proto.naming import safe_name

from ..rows.points import ScalarBlock, wall_times_s
from ..sinks import archive_format as form
from ..sinks.event_file import open_folder
from .blocks import BlockReader, Filter
from .frames import FrameReader

__all__ = ["Damage", "Point", "Run", "find_run", "runs"]


class Point(NamedTuple):
    """One number.

    Attributes:
        tag: its tag.
        step: its step.
        wall_time_s: when it was emitted, in seconds since the epoch.
        value: the float64 that was emitted.
    """

    tag: str
    step: int
    wall_time_s: float
    value: float


@dataclass(frozen=True, slots=True)
class Damage:
    """A part of a file that could not be read.

    Attributes:
        path: the file.
        offset: where what could be read ends.
        lost_bytes: how much comes after it.
        reason: what is wrong there.
    """

    path: Path
    offset: int
    lost_bytes: int
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.reason} at byte {self.offset}; "
            f"{self.lost_bytes} bytes from there on could not be read"
        )


@dataclass(slots=True)
class Run:
    """The archive of one run.

    Attributes:
        name: the run's name.
        log_dir: the log directory that it is in.
        damage: what the newest call of `blocks` or `points` could not read, once it is over.
    """

    name: str
    log_dir: Path
    damage: list[Damage] = field(default_factory=list[Damage])

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.log_dir / form.FOLDER / safe_name(self.name)

    def blocks(
        self,
        tags: Sequence[str] = (),
        first_step: int | None = None,
        last_step: int | None = None,
    ) -> Iterator[ScalarBlock]:
        """The run's numbers in blocks of rows that were emitted under the same tags.

        Args:
            tags: only tags that match one of these patterns (``train/*``; case matters); empty for
                all. The columns of a block are those that match.
            first_step: only rows of this step or later ones.
            last_step: only rows of this step or earlier ones.

        Yields:
            Blocks of at least one row: `steps` and `times_ns`, int64, shape (n,); `values`,
            float64, shape (n, k); at most about 6 MiB. The points of one tag come in the order in
            which the daemon took them.

        Raises:
            OSError: the folder is gone, or is behind a symbolic link.
        """
        self.damage.clear()
        wanted = Filter(tuple(tags), first_step, last_step)
        folder = open_folder(self.log_dir, (form.FOLDER, safe_name(self.name)), make=False)
        try:
            for name in _files(folder):
                yield from self._blocks_of(folder, name, wanted)
        finally:
            os.close(folder)

    def points(
        self,
        tags: Sequence[str] = (),
        first_step: int | None = None,
        last_step: int | None = None,
    ) -> Iterator[Point]:
        """The run's numbers one by one; the arguments are those of `blocks`, which is faster."""
        for block in self.blocks(tags, first_step, last_step):
            times = wall_times_s(block.times_ns).tolist()
            for step, time, row in zip(
                block.steps.tolist(), times, block.values.tolist(), strict=True
            ):
                for tag, value in zip(block.tags, row, strict=True):
                    yield Point(tag, step, time, value)

    def _blocks_of(self, folder: int, name: str, wanted: Filter) -> Iterator[ScalarBlock]:
        path = self.folder / name
        try:
            frames = FrameReader(_open(folder, name))
        except OSError as error:
            self.damage.append(Damage(path, 0, 0, f"cannot be opened ({error.strerror})"))
            return
        with frames:
            yield from BlockReader(frames, wanted).blocks()
            if frames.problem:
                lost_bytes = frames.size - frames.offset
                self.damage.append(Damage(path, frames.offset, lost_bytes, frames.problem))


def find_run(log_dir: str | os.PathLike[str], name: str) -> Run | None:
    """The archive of the run called `name` in `log_dir`, or None when there is none."""
    run = Run(name, Path(log_dir))
    try:
        os.close(open_folder(run.log_dir, (form.FOLDER, safe_name(name)), make=False))
    except OSError:
        return None
    return run


def runs(log_dir: str | os.PathLike[str]) -> list[Run]:
    """The runs that have an archive in `log_dir`, in the order of their names."""
    root = Path(log_dir)
    try:
        folders = sorted(os.listdir(root / form.FOLDER))
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = (_run_name(root, folder) for folder in folders)
    return sorted((Run(name, root) for name in names if name is not None), key=lambda run: run.name)


def _run_name(root: Path, run_dir: str) -> str | None:
    """The name of the run whose folder is `run_dir`; None when it is no run's."""
    try:
        folder = open_folder(root, (form.FOLDER, run_dir), make=False)
    except OSError:
        return None
    try:
        for name in _files(folder):
            try:
                with FrameReader(_open(folder, name)) as frames:
                    found = next((body for bodies in frames.bodies() for body in bodies), b"")
                run = form.run_of(found)
            except (OSError, form.FormatError):
                continue
            if safe_name(run) == run_dir:  # else it was moved here, and is not found by its name
                return run
    finally:
        os.close(folder)
    return run_dir if safe_name(run_dir) == run_dir else None


def _files(folder: int) -> list[str]:
    names = [name for name in os.listdir(folder) if form.number_of(name) >= 0]
    return sorted(names, key=lambda name: (form.number_of(name), name))


def _open(folder: int, name: str) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a plain file")
    return fd

"""What TensorBoard makes of a log directory: its runs, their tags, and what is under each."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.util.tensor_util import make_ndarray

from .oracle import OWN, assert_whole

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Curve:
    """All that TensorBoard has under one tag of one run.

    Attributes:
        plugin: which page shows it.
        content: what that page is told of it.
        points: step, wall time and tensor.
    """

    plugin: str
    content: bytes
    points: tuple[tuple[int, float, Any], ...]

    @property
    def steps(self) -> list[int]:
        return [step for step, _, _ in self.points]

    @property
    def times(self) -> list[float]:
        return [time for _, time, _ in self.points]

    @property
    def values(self) -> list[Any]:
        return [make_ndarray(value) for _, _, value in self.points]


@dataclass(frozen=True)
class View:
    """A log directory as TensorBoard loads it, less what is the daemon's own.

    Attributes:
        root: the directory.
        runs: for each run the curves by tag.
        graphs: for each run that has one, its graph.
    """

    root: Path
    runs: dict[str, dict[str, Curve]]
    graphs: dict[str, Any]

    def under(self, prefix: str, run: str) -> dict[tuple[str, str], Curve]:
        """The curves whose tag begins so, in `run` and the runs below, by run and tag."""
        return {
            (name, tag): curve
            for name, curves in self.runs.items()
            if name == run or name.startswith(f"{run}/")
            for tag, curve in curves.items()
            if tag.startswith(prefix)
        }

    def raw(self, prefix: str, run: str) -> list[tuple[int, Any]]:
        """Step and summary of each value of a run, as they lie in its files."""
        return [
            (event.step, value)
            for event in self.events(run)
            for value in event.summary.value
            if value.tag.startswith(prefix) and not value.tag.startswith(OWN)
        ]

    def events(self, run: str) -> Iterator[Any]:
        """Every event in a run's own files, in the order in which TensorBoard reads them."""
        for path in sorted((self.root / run).glob("events.out.tfevents.*")):
            yield from LegacyEventFileLoader(str(path)).Load()


def view(root: Path) -> View:
    """Load a directory with TensorBoard's own reader; every file in it must be whole."""
    for path in root.rglob("events.out.tfevents.*"):
        assert_whole(path)
    multiplexer = EventMultiplexer(tensor_size_guidance={"tensors": 0})  # everything
    multiplexer.AddRunsFromDirectory(str(root))
    multiplexer.Reload()
    runs: dict[str, dict[str, Curve]] = {}
    graphs: dict[str, Any] = {}
    for run, found in multiplexer.Runs().items():
        runs[run] = {
            tag: _curve(multiplexer, run, tag)
            for tag in found["tensors"]
            if not tag.startswith(OWN)
        }
        if found["graph"]:
            graphs[run] = multiplexer.Graph(run)
    return View(root, runs, graphs)


def _curve(multiplexer: Any, run: str, tag: str) -> Curve:
    data = multiplexer.SummaryMetadata(run, tag).plugin_data
    points = tuple(
        (event.step, event.wall_time, event.tensor_proto) for event in multiplexer.Tensors(run, tag)
    )
    return Curve(data.plugin_name, data.content, points)


def picture(encoded: bytes) -> Pixels:
    """The pixels of a PNG, (H, W, C)."""
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def film(encoded: bytes) -> tuple[list[Pixels], list[int]]:
    """The frames of a GIF in RGB, and how long each is shown, in ms."""
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.format == "GIF"
        frames = [
            (np.asarray(frame.convert("RGB")), int(frame.info["duration"]))
            for frame in ImageSequence.Iterator(image)
        ]
    return [pixels for pixels, _ in frames], [duration for _, duration in frames]


def sound(encoded: bytes) -> tuple[Any, bytes]:
    """The parameters of a WAV and its samples."""
    with wave.open(io.BytesIO(encoded)) as file:
        return file.getparams(), file.readframes(file.getnframes())

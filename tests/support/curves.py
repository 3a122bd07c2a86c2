"""What TensorBoard draws of a run once it has read all of its files, restarts and all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) of each point under a tag, with TensorBoard's own defaults but no limit."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(point.step, point.value) for point in accumulator.Scalars(tag)]


def restarts(files: Iterable[Path]) -> list[int]:
    """The steps from which on TensorBoard is told to hide what it had."""
    return [
        event.step
        for file in files
        for event in LegacyEventFileLoader(str(file)).Load()
        if event.session_log.status == event.session_log.START
    ]

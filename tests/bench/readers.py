"""Read what the measured systems wrote: growing event files, finished ones, and .wandb files."""

from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

Scalar = tuple[int, str, float]
"""Step, tag, value."""

_LENGTH_AND_CRC: Final = struct.Struct("<QI")
_CRC_BYTES: Final = 4
_TAIL_BYTES: Final = 1 << 16
"""A marker is looked for in so much of a file's end: more than is appended after it meanwhile."""

_WANDB_HEADER_BYTES: Final = 7
_WANDB_BLOCK_BYTES: Final = 1 << 15
_WANDB_RECORD: Final = struct.Struct("<IHB")
_WANDB_WHOLE, _WANDB_FIRST, _WANDB_LAST = 1, 2, 4


def event_files(directory: Path) -> list[Path]:
    """The event files below `directory`, in the order in which they were begun."""
    return sorted(directory.rglob("events.out.tfevents.*"))


def ends_with(path: Path, marker: bytes) -> bool:
    """Whether `marker` is near the end of the file; cheap enough to ask again and again."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - _TAIL_BYTES))
        return marker in file.read()


class EventTail:
    """Follows a growing event file.

    The checksums are not looked at: this says when a record is there for a reader; that it is sound
    is for `event_scalars` to say afterwards.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""

    def read(self) -> list[bytes]:
        """The serialized events that were completed since the last call; opens only what grew."""
        if self._path.stat().st_size <= self._offset:
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        self._offset += len(new)
        events, self._rest = split_events(self._rest + new)
        return events


def split_events(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole TFRecords at the start of `data` without their frames, and the bytes after them."""
    events: list[bytes] = []
    at = 0
    while at + _LENGTH_AND_CRC.size <= len(data):
        length, _ = _LENGTH_AND_CRC.unpack_from(data, at)
        start = at + _LENGTH_AND_CRC.size
        end = start + length + _CRC_BYTES
        if end > len(data):
            break
        events.append(data[start : start + length])
        at = end
    return events, data[at:]


def event_scalars(paths: Iterable[Path], *, migrate: bool) -> Iterator[Scalar]:
    """The scalars of finished event files, read by TensorBoard, every checksum verified.

    Args:
        paths: the files.
        migrate: read with `EventFileLoader`, which makes a tensor of every scalar at 27 µs each;
            else with the class that it extends by just that, `LegacyEventFileLoader`, 40 times as
            fast.
    """
    import google_crc32c
    from tensorboard.backend.event_processing import event_file_loader
    from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
    from tensorboard.util import tensor_util

    # The same checksum, computed in C: TensorBoard's own is Python and takes minutes here.
    pywrap_tensorflow.crc32c = google_crc32c.value
    loader = (
        event_file_loader.EventFileLoader if migrate else event_file_loader.LegacyEventFileLoader
    )
    for path in paths:
        for event in loader(str(path)).Load():
            for value in event.summary.value:
                if migrate:
                    yield event.step, value.tag, tensor_util.make_ndarray(value.tensor).item()
                elif value.HasField("simple_value"):
                    yield event.step, value.tag, value.simple_value


def wandb_scalars(paths: Iterable[Path]) -> Iterator[Scalar]:
    """The numbers in the history of .wandb files."""
    # By name, since its types are made at run time: no type checker knows them.
    record_type: Any = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    for path in paths:
        for data in split_wandb(path.read_bytes()):
            record = record_type.FromString(data)
            if not record.HasField("history"):
                continue
            row = {item.key or "/".join(item.nested_key): item for item in record.history.item}
            step = int(json.loads(row["_step"].value_json))
            for tag, item in row.items():
                number = json.loads(item.value_json)
                if not tag.startswith("_") and isinstance(number, int | float):
                    yield step, tag, float(number)


def split_wandb(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format, in blocks of 32 KiB, after a header."""
    at = _WANDB_HEADER_BYTES
    parts: list[bytes] = []
    while at + _WANDB_RECORD.size <= len(data):
        left_in_block = _WANDB_BLOCK_BYTES - at % _WANDB_BLOCK_BYTES
        if left_in_block < _WANDB_RECORD.size:
            at += left_in_block  # a record's head does not cross blocks: padding
            continue
        _, length, kind = _WANDB_RECORD.unpack_from(data, at)
        at += _WANDB_RECORD.size
        part = data[at : at + length]
        at += length
        if kind == 0:
            return
        parts = [part] if kind in (_WANDB_WHOLE, _WANDB_FIRST) else [*parts, part]
        if kind in (_WANDB_WHOLE, _WANDB_LAST):
            yield b"".join(parts)


class MissingDataError(Exception):
    """A file does not hold, exactly once, what was logged."""


def check_scalars(scalars: Iterable[Scalar], pool: list[dict[str, float]], steps: int) -> int:
    """Check that every number of `steps` steps is there, once, as it was logged.

    Args:
        scalars: what the files hold; tags that the pool does not have are somebody else's.
        pool: step `s` was logged with `pool[s % len(pool)]`.
        steps: so many steps were logged, from 0.

    Returns:
        How many numbers were checked.

    Raises:
        MissingDataError: it is not so.
    """
    tags = {tag: 1 << index for index, tag in enumerate(pool[0])}
    seen = [0] * steps
    for step, tag, value in scalars:
        bit = tags.get(tag)
        if bit is None:
            continue
        if not 0 <= step < steps:
            raise MissingDataError(f"{tag} has step {step}; only {steps} steps were logged")
        if seen[step] & bit:
            raise MissingDataError(f"{tag} is there twice at step {step}")
        seen[step] |= bit
        if value != pool[step % len(pool)][tag]:
            raise MissingDataError(f"{tag} is {value!r} at step {step}: not what was logged")
    whole = (1 << len(tags)) - 1
    short = [step for step in range(steps) if seen[step] != whole]
    if short:
        raise MissingDataError(
            f"{len(short)} of {steps} steps are not there, or not whole: the first is {short[0]}"
        )
    return steps * len(tags)

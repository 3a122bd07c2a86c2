"""Samples to WAV of 16 bits, by the standard library."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from typing import Final

import numpy as np

from sidestep.proto import Value

from .arrays import only_array

_MAX_RATE: Final = 10_000_000
_MAX_CHANNELS: Final = 32


@dataclass(frozen=True, slots=True)
class Wav:
    """A WAV file, and what it says of itself."""

    data: bytes
    sample_rate: int
    channels: int
    frames: int


def wav_of(value: Value) -> Wav:
    """The sound of a value of kind ``audio``.

    Floats are cut to [-1, 1] and to integers as `torch.utils.tensorboard` does; NaN is silence.
    """
    samples = only_array(value)
    rate = value.info.get("sample_rate")
    if not isinstance(rate, int) or not 0 < rate <= _MAX_RATE:
        raise ValueError(
            f"a sample rate must be an integer from 1 to {_MAX_RATE}, not {rate!r:.40}"
        )
    if samples.ndim not in (1, 2) or 0 in samples.shape:
        raise ValueError(f"samples are (T,) or (C, T), not {samples.shape}")
    rows = samples.reshape(-1, samples.shape[-1])
    if len(rows) > _MAX_CHANNELS:
        raise ValueError(f"{len(rows)} channels, at most {_MAX_CHANNELS}")
    if rows.dtype.kind == "f":
        # In their own precision, float16 in a larger one: 32,767 is beyond its integers.
        wide = rows.astype(np.float32) if rows.dtype == np.float16 else rows
        clean = np.nan_to_num(wide, nan=0.0, posinf=1.0, neginf=-1.0).clip(-1, 1)
        rows = (clean * np.iinfo(np.int16).max).astype("<i2")
    elif rows.dtype != np.int16:
        raise ValueError(f"samples are floats from -1 to 1, or int16, not {rows.dtype}")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(len(rows))
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(np.ascontiguousarray(rows.T, "<i2").tobytes())
    return Wav(file.getvalue(), rate, len(rows), rows.shape[1])

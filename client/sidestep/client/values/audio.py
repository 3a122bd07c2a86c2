"""Sound: the samples travel as they are and become WAV in the daemon."""

from __future__ import annotations

from typing import Any, Final

from .arrays import as_array, dtype_name
from .base import EmitContext, InvalidValueError, Prepared, Value
from .media import clean_text, shape_of, whole

_MAX_CHANNELS: Final = 32
_MAX_RATE: Final = 10_000_000


class Audio(Value):
    """A sound; it becomes a WAV of 16 bits in the daemon.

    Args:
        samples: (T,) or (C, T) with up to 32 channels. Floats in [-1, 1]: clipped, times 32,767,
            cut to an integer as `torch.utils.tensorboard` does; NaN reads as 0. Or int16, taken
            as it is. bfloat16 travels as float32.
        sample_rate: samples a second, an int from 1 to 10,000,000.
        caption: shown beside it, at most 64 KiB of UTF-8.

    Raises:
        InvalidValueError: when emitted, for another dtype or rank, or no samples.
    """

    kind = "audio"

    def __init__(
        self, samples: Any, *, sample_rate: int = 44_100, caption: str | None = None
    ) -> None:
        self._samples = samples
        self._sample_rate = sample_rate
        self._caption = caption

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        samples = as_array(self._samples, "Audio")
        dtype, shape = dtype_name(samples), shape_of(samples)
        if dtype != "int16" and not dtype.startswith(("float", "bfloat")):
            raise InvalidValueError(f"Audio of {dtype}: expected floats in [-1, 1], or int16")
        if len(shape) not in (1, 2) or 0 in shape:
            raise InvalidValueError(f"Audio of shape {shape}: expected a non-empty (T,) or (C, T)")
        if len(shape) == 2 and shape[0] > _MAX_CHANNELS:
            raise InvalidValueError(
                f"Audio of shape {shape}: expected (C, T) with at most {_MAX_CHANNELS} channels; "
                "if it is (T, C), transpose it"
            )
        rate = whole(self._sample_rate, "Audio sample_rate", 1, _MAX_RATE)
        info: dict[str, object] = {"sample_rate": rate}
        if self._caption is not None:
            info["caption"] = clean_text(self._caption, "caption")
        return Prepared(self.kind, info, (samples,))

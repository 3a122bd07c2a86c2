"""Sound as TensorBoard plays it."""

from __future__ import annotations

from typing import Any

from sidestep.proto import Value

from ..rendering.wav import wav_of


def audio(value: Value, event: Any) -> None:
    """A sound, as WAV."""
    wav = wav_of(value)
    shown = event.summary.value.add(tag=value.tag)
    shown.audio.sample_rate = wav.sample_rate
    shown.audio.num_channels = wav.channels
    shown.audio.length_frames = wav.frames
    shown.audio.encoded_audio_string = wav.data
    shown.audio.content_type = "audio/wav"
    caption = value.info.get("caption")
    if isinstance(caption, str) and caption:
        shown.metadata.summary_description = caption

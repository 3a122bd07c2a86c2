"""Sound as W&B plays it."""

from __future__ import annotations

import os
import tempfile

from sidestep.proto import Value

from ..rendering.wav import wav_of


def audio(value: Value) -> object:
    """A sound, encoded here: wandb would need soundfile for it."""
    import wandb

    wav = wav_of(value)
    caption = value.info.get("caption")
    handle, path = tempfile.mkstemp(suffix=".wav")
    try:
        with open(handle, "wb") as file:
            file.write(wav.data)
        shown = wandb.Audio(path, caption=caption if isinstance(caption, str) else None)
    except BaseException:
        os.unlink(path)
        raise
    # So that wandb moves the file into the run instead of copying it; it does so with its own.
    shown._is_tmp = True  # pyright: ignore[reportPrivateUsage]
    return shown

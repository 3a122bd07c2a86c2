"""Spectra as W&B shows them: pictures."""

from __future__ import annotations

from sidestep.proto import Value

from ..rendering.spectra import spectrum_pixels


def spectrum(value: Value) -> object:
    """Eigenvalues on logarithmic axes."""
    import wandb
    from PIL import Image

    return wandb.Image(Image.fromarray(spectrum_pixels(value)))

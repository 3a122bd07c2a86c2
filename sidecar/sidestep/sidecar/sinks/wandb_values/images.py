"""Pictures as W&B shows them."""

from __future__ import annotations

from sidestep.proto import Value

from ..rendering.arrays import only_array
from ..rendering.pixels import pixels_of


def image(value: Value) -> object:
    """One picture with its caption."""
    import wandb
    from PIL import Image

    pixels = pixels_of(only_array(value), value.info.get("layout"))
    caption = value.info.get("caption")
    # As a picture, not as an array: of an array wandb guesses whether it goes up to 1 or to 255.
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return wandb.Image(picture, caption=caption if isinstance(caption, str) and caption else None)

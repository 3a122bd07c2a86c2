"""Pictures, still and moving, as W&B shows them."""

from __future__ import annotations

import io
from typing import Any, Final

from sidestep.proto import Value

from ..rendering.arrays import numpy_of, only_array
from ..rendering.gif import gif_of
from ..rendering.grids import panels_of
from ..rendering.pixels import Pixels, batch_of, pixels_of
from ..rendering.png import boxes_of

_BOXES: Final = "boxes"
"""The name under which W&B lets its reader show and hide an image's boxes."""

_NO_LABEL: Final = "box"


def image(value: Value) -> object:
    """One picture with its caption and its boxes."""
    if len(value.arrays) not in (1, 2):
        raise ValueError(f"an image has pixels, and may have boxes, not {len(value.arrays)} arrays")
    pixels = pixels_of(numpy_of(value.arrays[0]), value.info.get("layout"))
    return _image(pixels, _text(value.info.get("caption")), _boxes(value))


def images(value: Value) -> object:
    """Several pictures, each with its caption."""
    batch = batch_of(only_array(value), value.info.get("layout"))
    captions: Any = value.info.get("captions")
    if not isinstance(captions, list):
        # The one of a list of figures.
        captions = [value.info.get("caption")] * len(batch)
    if len(captions) != len(batch):
        raise ValueError(f"{len(captions)} captions for {len(batch)} images")
    return [_image(pixels, _text(text)) for pixels, text in zip(batch, captions, strict=True)]


def masked_image(value: Value) -> object:
    """Image, mask, masked image and prediction, side by side in one picture."""
    return _image(panels_of(value), _text(value.info.get("caption")))


def video(value: Value) -> object:
    """A moving picture, encoded here: wandb would need moviepy for it."""
    import wandb

    gif = io.BytesIO(gif_of(value).data)
    return wandb.Video(gif, caption=_text(value.info.get("caption")), format="gif")


def _image(pixels: Pixels, caption: str | None, boxes: dict[str, Any] | None = None) -> object:
    import wandb
    from PIL import Image

    # As a picture, not as an array: of an array wandb guesses whether it goes up to 1 or to 255.
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return wandb.Image(picture, caption=caption, boxes=boxes)


def _boxes(value: Value) -> dict[str, Any] | None:
    """The boxes as W&B draws them itself, in the color of their label."""
    boxes = boxes_of(value)
    if not boxes:
        return None
    names = dict.fromkeys(label or _NO_LABEL for *_, label in boxes)
    classes = {name: number for number, name in enumerate(names)}
    data = [
        {
            "position": {"minX": left, "minY": top, "maxX": right, "maxY": bottom},
            "domain": "pixel",
            "class_id": classes[label or _NO_LABEL],
            "box_caption": label,
        }
        for left, top, right, bottom, label in boxes
    ]
    labels = {number: name for name, number in classes.items()}
    return {_BOXES: {"box_data": data, "class_labels": labels}}


def _text(caption: object) -> str | None:
    return caption if isinstance(caption, str) and caption else None

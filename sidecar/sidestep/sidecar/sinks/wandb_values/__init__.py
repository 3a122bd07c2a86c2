"""Values that are no plain numbers to W&B's data types: one function for each kind.

To add a kind, write a renderer and name it in `RENDERERS`. It may raise anything but an OSError to
say that a value cannot be shown: the sink skips and counts it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from sidestep.proto import Value
from sidestep.proto.tag_sets import RANK_PART

from .audio import audio
from .histograms import histogram, histogram_counts
from .images import image, images, masked_image, video
from .meshes import mesh
from .spectra import spectrum
from .tables import embedding, pr_curve
from .tensors import tensor
from .text import text

Renderer = Callable[[Value], object]
"""Makes the W&B data type that shows a value."""

RENDERERS: Final[Mapping[str, Renderer]] = {
    "audio": audio,
    "embedding": embedding,
    "histogram": histogram,
    "histogram_counts": histogram_counts,
    "image": image,
    "images": images,
    "masked_image": masked_image,
    "mesh": mesh,
    "pr_curve": pr_curve,
    "pr_curve_counts": pr_curve,
    "spectrum": spectrum,
    "tensor": tensor,
    "text": text,
    "video": video,
}
"""What shows which kind of value."""

IGNORED: Final = frozenset(
    {"custom_scalars", "event", "graph", "moments", "parameters", "purge", "series", RANK_PART}
)
"""Kinds that are for TensorBoard or the derivers alone.

A graph is one of them: what W&B calls one is read off the modules of a model while it runs, and a
GraphDef has neither. A row that was logged cannot be taken back, so a restart is nothing to it.
"""


def object_of(value: Value) -> object:
    """The W&B data type that shows `value`.

    Raises:
        ValueError: nothing here shows values of this kind, or this one is not as its kind says.
        OSError: a file that wandb makes of it cannot be written.
    """
    render = RENDERERS.get(value.kind)
    if render is None:
        raise ValueError(f"W&B has nothing for values of kind {value.kind!r:.80}")
    try:
        return render(value)
    except OSError:  # a full disk, not a bad value
        raise
    except Exception as error:
        raise ValueError(str(error)) from error

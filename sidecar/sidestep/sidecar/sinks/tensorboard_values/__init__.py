"""Values that are no plain numbers to TensorBoard events: one function for each kind.

A renderer fills in an Event that already has its wall time and step; one that needs several
events, a folder below the run's or files beside the events returns a `Rendered`. To add a kind,
write one and name it in `RENDERERS` or `COMPOSERS`. It may raise anything but an OSError: the sink
skips and counts a value that cannot be shown. What is shown equals what `torch.utils.tensorboard`
would have written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sidestep.proto import Value
from sidestep.proto.tag_sets import RANK_PART

from .alarms import alarm
from .audio import audio
from .custom_scalars import custom_scalars
from .embeddings import embedding
from .events import event
from .graphs import graph
from .histograms import histogram, histogram_counts
from .hparams import hparams
from .images import image, images, masked_image, video
from .meshes import mesh
from .pr_curves import pr_curve
from .purges import purge
from .rendered import Rendered, new_event
from .spectra import spectrum
from .tensors import tensor
from .text import text

Renderer = Callable[[Value, Any], None]
"""Fills in the Event that shows a value."""

RENDERERS: Final[Mapping[str, Renderer]] = {
    "alarm": alarm,
    "audio": audio,
    "custom_scalars": custom_scalars,
    "event": event,
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
"""What shows which kind of value in one event of the run's own folder."""

Composer = Callable[[Value], Rendered]
"""Makes all that is to be written of a value."""

COMPOSERS: Final[Mapping[str, Composer]] = {
    "embedding": embedding,
    "graph": graph,
    "hparams": hparams,
    "purge": purge,
}
"""What shows which kind of value in any other way."""

IGNORED: Final = frozenset({"moments", "parameters", RANK_PART})
"""Kinds that are for the derivers alone."""


def rendered_of(value: Value) -> Rendered:
    """All that is to be written of `value`.

    Raises:
        Exception: nothing here shows values of this kind, or this one is not as its kind asks.
    """
    compose = COMPOSERS.get(value.kind)
    return Rendered([("", event_of(value))]) if compose is None else compose(value)


def event_of(value: Value) -> bytes:
    """The serialized Event that shows `value`, of a kind in `RENDERERS`.

    Raises:
        Exception: no renderer shows values of this kind, or this one is not as its kind asks.
    """
    render = RENDERERS.get(value.kind)
    if render is None:
        raise ValueError(f"TensorBoard has nothing for values of kind {value.kind!r:.80}")
    event = new_event(value)
    render(value, event)
    return bytes(event.SerializeToString())

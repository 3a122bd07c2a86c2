"""Values that are no plain numbers to TensorBoard events: one function for each kind.

A renderer fills in an Event that already has its wall time and step. To add a kind, write one and
name it in `RENDERERS`. It may raise anything: the sink skips and counts a value that cannot be
shown. What is shown equals what `torch.utils.tensorboard` would have written.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto import event_pb2, types_pb2

from sidestep.proto import Array, Value

from ..points import wall_times_s

# Their members are made at import: no type checker sees them.
_EVENTS: Final[Any] = event_pb2
_TYPES: Final[Any] = types_pb2

_HISTOGRAM_CHUNK: Final = 65_536
"""Values that are sorted at a time: they stay in the cache, and a copy of all is never made."""

_MAX_BINS: Final = 4096
"""Of a histogram with bins of equal width; more than a screen has columns."""

_LAYOUT_AXES: Final[Mapping[str, tuple[int, ...]]] = {"HWC": (0, 1, 2), "CHW": (1, 2, 0)}


def event_of(value: Value) -> bytes:
    """The serialized Event that shows `value`.

    Raises:
        Exception: nothing here shows values of this kind, or this one is not as its kind asks.
    """
    render = RENDERERS.get(value.kind)
    if render is None:
        raise ValueError(f"TensorBoard has nothing for values of kind {value.kind!r:.80}")
    event = _EVENTS.Event(wall_time=wall_times_s(value.time_ns), step=value.step)
    render(value, event)
    return bytes(event.SerializeToString())


# --- text ----------------------------------------------------------------------------------


def _text(value: Value, event: Any) -> None:
    text = value.info.get("text")
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, not {type(text).__name__}")
    shown = event.summary.value.add(tag=f"{value.tag}/text_summary")
    shown.metadata.plugin_data.plugin_name = "text"  # its content, version 0, is no bytes
    shown.tensor.dtype = _TYPES.DT_STRING
    shown.tensor.tensor_shape.dim.add(size=1)
    shown.tensor.string_val.append(text.encode("utf-8", "replace"))


# --- images --------------------------------------------------------------------------------


def _image(value: Value, event: Any) -> None:
    from PIL import Image

    pixels = _pixels(_numpy(_only_array(value)), value.info.get("layout"))
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    shown = event.summary.value.add(tag=value.tag)
    shown.image.height, shown.image.width, shown.image.colorspace = pixels.shape
    shown.image.encoded_image_string = png.getvalue()
    caption = value.info.get("caption")
    if isinstance(caption, str) and caption:
        shown.metadata.summary_description = caption


def _pixels(array: npt.NDArray[Any], layout: object) -> npt.NDArray[np.uint8]:
    """`array` as bytes of shape (height, width, 3 or 4)."""
    if layout == "HW" and array.ndim == 2:
        array = array[:, :, None]
    elif layout in ("HWC", "CHW") and array.ndim == 3:
        array = array.transpose(_LAYOUT_AXES[str(layout)])
    else:
        raise ValueError(f"an image of shape {array.shape} is not laid out as {layout!r:.20}")
    if 0 in array.shape or array.shape[2] not in (1, 3, 4):
        raise ValueError(f"an image has 1, 3 or 4 channels and a size, not {array.shape}")
    if array.dtype.kind == "f":
        # float32 before the product, and cut rather than rounded: as torch.utils.tensorboard does.
        shades = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
        array = (shades.clip(0, 1) * np.float32(255)).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"pixels are uint8, or floats from 0 to 1, not {array.dtype}")
    if array.shape[2] == 1:
        array = array.repeat(3, axis=2)
    return np.ascontiguousarray(array)


# --- histograms ----------------------------------------------------------------------------


def _histogram(value: Value, event: Any) -> None:
    data = _numpy(_only_array(value)).reshape(-1)
    bins = value.info.get("bins")
    histogram = event.summary.value.add(tag=value.tag).histo
    histogram.SetInParent()  # there is a histogram, even if it stays empty
    with np.errstate(all="ignore"):  # sums of huge values become infinite
        count, low, high, total, squares = _moments(data)
        if count:
            edges = _exponential_edges() if bins is None else _equal_edges(bins, low, high)
            counts, limits = _support(_counts(data, edges), edges)
            histogram.min, histogram.max, histogram.num = low, high, count
            histogram.sum, histogram.sum_squares = total, squares
            histogram.bucket_limit.extend(limits.tolist())
            histogram.bucket.extend(counts.tolist())


@cache
def _exponential_edges() -> npt.NDArray[np.float64]:
    """TensorFlow's buckets: each a tenth wider than the one before, from 1e-12 to 1e20 and beyond.

    torch leaves the outermost two away, and with them all that is over 1e20.
    """
    positive = [1e-12]
    while (edge := positive[-1] * 1.1) < 1e20:
        positive.append(edge)
    half = np.array([*positive, np.finfo(np.float64).max])
    return np.concatenate([-half[::-1], [0.0], half])


def _equal_edges(bins: object, low: float, high: float) -> npt.NDArray[np.float64]:
    if not isinstance(bins, int) or not 0 < bins <= _MAX_BINS:
        raise ValueError(f"bins must be an integer from 1 to {_MAX_BINS}, not {bins!r:.40}")
    try:
        edges = np.histogram_bin_edges(np.array([low, high]), bins)
    except ValueError:  # the range has fewer numbers than that, or is itself no finite number
        return _exponential_edges()
    return edges if np.isfinite(edges).all() else _exponential_edges()


def _finite_chunks(data: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield the finite values, some of them at a time."""
    for start in range(0, len(data), _HISTOGRAM_CHUNK):
        chunk = data[start : start + _HISTOGRAM_CHUNK]
        finite = np.isfinite(chunk)
        yield chunk if finite.all() else chunk[finite]


def _moments(data: npt.NDArray[Any]) -> tuple[int, float, float, float, float]:
    """Count, minimum, maximum, sum and sum of squares of the finite values."""
    count, low, high, total, squares = 0, np.inf, -np.inf, 0.0, 0.0
    for chunk in _finite_chunks(data):
        if chunk.size:
            doubles = chunk.astype(np.float64)
            count += chunk.size
            low, high = min(low, doubles.min()), max(high, doubles.max())
            total += doubles.sum()
            squares += np.square(doubles).sum()  # not BLAS: its threads add up in any order
    return count, float(low), float(high), float(total), float(squares)


def _counts(data: npt.NDArray[Any], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """How many finite values lie in each bucket, the upper limit of the last one included."""
    counts = np.zeros(len(edges) - 1, np.int64)
    for chunk in _finite_chunks(data):
        # As np.histogram does it, but sorted as what they are: float32 takes half the time.
        ordered = np.sort(chunk).astype(np.float64)
        below = ordered.searchsorted(edges, side="left")
        below[-1] = ordered.searchsorted(edges[-1], side="right")
        counts += np.diff(below)
    return counts


def _support(
    counts: npt.NDArray[np.int64], edges: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Counts and upper limits from the bucket before the first full one to the last full one.

    The empty bucket in front tells TensorBoard where the first full one begins.
    """
    full = np.flatnonzero(counts)
    first, last = int(full[0]), int(full[-1])
    return np.concatenate([[0], counts[first : last + 1]]), edges[first : last + 2]


# --- common --------------------------------------------------------------------------------


def _only_array(value: Value) -> Array:
    if len(value.arrays) != 1:
        raise ValueError(f"a value of kind {value.kind!r} has one array, not {len(value.arrays)}")
    return value.arrays[0]


def _numpy(array: Array) -> npt.NDArray[Any]:
    dtype = np.dtype(array.dtype).newbyteorder("<")
    return np.frombuffer(array.data, dtype).reshape(array.shape)


Renderer = Callable[[Value, Any], None]
"""Fills in the Event that shows a value."""

RENDERERS: Final[Mapping[str, Renderer]] = {
    "histogram": _histogram,
    "image": _image,
    "text": _text,
}
"""What shows which kind of value."""

IGNORED: Final = frozenset({"moments"})
"""Kinds that are for the derivers alone."""

"""Values that are no plain numbers to W&B's data types: one function for each kind.

To add a kind, write a renderer and name it in `RENDERERS`. It may raise anything but an OSError to
say that a value cannot be shown: the sink skips and counts it.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sidestep.proto import Array, Value

_DEFAULT_BINS: Final = 64
"""Of `wandb.Histogram`."""

_MAX_BINS: Final = 512
"""More buckets W&B does not take: wider ones say nothing false."""

_HISTOGRAM_CHUNK: Final = 65_536
"""Values that are looked at together: they stay in the cache, and a copy of all is never made."""

_LAYOUT_AXES: Final[Mapping[str, tuple[int, ...]]] = {"HWC": (0, 1, 2), "CHW": (1, 2, 0)}


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


# --- text ----------------------------------------------------------------------------------


def _text(value: Value) -> object:
    import wandb

    text = value.info.get("text")
    if not isinstance(text, str):
        raise TypeError(f"text must be a string, not {type(text).__name__}")
    # Escaped: the text is shown as it was emitted, and nothing in it runs in the reader's browser.
    shown = html.escape(text.encode("utf-8", "replace").decode())
    page = f'<meta charset="utf-8"><pre style="white-space: pre-wrap">{shown}</pre>'
    return wandb.Html(page, data_is_not_path=True)


# --- images --------------------------------------------------------------------------------


def _image(value: Value) -> object:
    import wandb
    from PIL import Image

    pixels = _pixels(_numpy(_only_array(value)), value.info.get("layout"))
    caption = value.info.get("caption")
    # As a picture, not as an array: of an array wandb guesses whether it goes up to 1 or to 255.
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return wandb.Image(picture, caption=caption if isinstance(caption, str) and caption else None)


def _pixels(array: npt.NDArray[Any], layout: object) -> npt.NDArray[np.uint8]:
    """`array` as bytes of shape (height, width, 1, 3 or 4)."""
    if layout == "HW" and array.ndim == 2:
        array = array[:, :, None]
    elif layout in ("HWC", "CHW") and array.ndim == 3:
        array = array.transpose(_LAYOUT_AXES[str(layout)])
    else:
        raise ValueError(f"an image of shape {array.shape} is not laid out as {layout!r:.20}")
    if 0 in array.shape or array.shape[2] not in (1, 3, 4):
        raise ValueError(f"an image has 1, 3 or 4 channels and a size, not {array.shape}")
    if array.dtype.kind == "f":
        # The same shades as in TensorBoard: cut, not rounded.
        shades = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
        array = (shades.clip(0, 1) * np.float32(255)).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(f"pixels are uint8, or floats from 0 to 1, not {array.dtype}")
    return np.ascontiguousarray(array)


# --- histograms ----------------------------------------------------------------------------


def _histogram(value: Value) -> object:
    import wandb

    data = _numpy(_only_array(value)).reshape(-1)
    bins = value.info.get("bins")
    if bins is None:
        bins = _DEFAULT_BINS
    if not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be a positive integer, not {bins!r:.40}")
    return wandb.Histogram(np_histogram=_buckets(data, min(bins, _MAX_BINS)))


def _buckets(
    data: npt.NDArray[Any], bins: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Counts and edges of `bins` buckets of equal width over the finite values of `data`."""
    low, high = np.inf, -np.inf
    for chunk in _finite_chunks(data):
        low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
    if low > high:
        raise ValueError("a histogram needs at least one finite value")
    with np.errstate(all="ignore"):  # huge values have infinite distances
        edges = _edges(low, high, bins)
        counts = np.zeros(len(edges) - 1, np.int64)
        for chunk in _finite_chunks(data):
            counts += np.histogram(chunk, bins=edges)[0]
    return counts, edges


def _edges(low: float, high: float, bins: int) -> npt.NDArray[np.float64]:
    try:
        edges = np.histogram_bin_edges(np.array([low, high]), bins)
    except ValueError:  # numpy refuses a range that is infinitely wide or too narrow to divide
        edges = np.array([low, high])
    if np.isfinite(edges).all() and (edges[1:] > edges[:-1]).all():
        return edges
    # One bucket for all of them says nothing false either.
    largest = np.finfo(np.float64).max
    around = np.array([np.nextafter(low, -np.inf), np.nextafter(high, np.inf)])
    return around.clip(-largest, largest)


def _finite_chunks(data: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the finite values in float64, some of them at a time."""
    for start in range(0, len(data), _HISTOGRAM_CHUNK):
        chunk = data[start : start + _HISTOGRAM_CHUNK].astype(np.float64)
        finite = chunk[np.isfinite(chunk)]
        if finite.size:
            yield finite


# --- common --------------------------------------------------------------------------------


def _only_array(value: Value) -> Array:
    if len(value.arrays) != 1:
        raise ValueError(f"a value of kind {value.kind!r} has one array, not {len(value.arrays)}")
    return value.arrays[0]


def _numpy(array: Array) -> npt.NDArray[Any]:
    dtype = np.dtype(array.dtype).newbyteorder("<")
    return np.frombuffer(array.data, dtype).reshape(array.shape)


Renderer = Callable[[Value], object]
"""Makes the W&B data type that shows a value."""

RENDERERS: Final[Mapping[str, Renderer]] = {
    "histogram": _histogram,
    "image": _image,
    "text": _text,
}
"""What shows which kind of value."""

IGNORED: Final = frozenset({"moments"})
"""Kinds that are for the derivers alone."""

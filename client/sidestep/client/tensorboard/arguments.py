"""What torch's writer takes, as `emit` takes it; what neither takes is left for `emit` to refuse.

Nothing here reads a tensor that is on a device: that would wait for it.
"""

from __future__ import annotations

from numbers import Number
from typing import Any, Final, cast

from ..values import InvalidValueError, Value, is_tensor, on_device
from ..values.histogram import Histogram
from ..values.image import Image, Images

_PLAIN: Final = (float, int, bool)


def step_of(global_step: Any) -> Any:
    """The step as torch takes it: None is 0, and whatever `int` takes is a number."""
    if global_step is None:
        return 0
    if type(global_step) is int or on_device(global_step):
        return global_step
    try:
        return int(global_step)
    except Exception:  # noqa: BLE001 - the object's own code; emit says what it expected
        return global_step


def wall_time_of(walltime: Any) -> Any:
    """Seconds since the epoch as a float, or None."""
    if walltime is None or type(walltime) is float or on_device(walltime):
        return walltime
    try:
        return float(walltime)
    except Exception:  # noqa: BLE001 - the same
        return walltime


def scalar_of(value: Any) -> Any:
    """A number as torch takes it: one element of any shape, or a text that says a number."""
    if type(value) in _PLAIN:
        return value
    if is_tensor(value):
        return value.detach().reshape(()) if value.ndim and value.numel() == 1 else value
    if hasattr(value, "dtype") and getattr(value, "size", 0) == 1:
        return value.reshape(())
    if isinstance(value, (str, Number)) and not isinstance(value, complex):
        try:
            return float(cast("Any", value))  # Decimal, Fraction, "0.5"
        except Exception:  # noqa: BLE001 - the same
            return value
    return value


def pictures(pixels: Any, dataformats: Any) -> Value:
    """A picture, or for four axes a grid of some, as torch's `dataformats` says.

    Args:
        pixels: tensor or array of any dtype; in all but uint8, 1 is white.
        dataformats: a letter for each axis, of N, C, H and W, in any order.

    Raises:
        InvalidValueError: the letters do not fit.
    """
    array, layout = _arranged(pixels, dataformats)
    return Images(array, layout=layout) if layout == "NCHW" else Image(array, layout=layout)


def boxed(pixels: Any, boxes: Any, rescale: Any, dataformats: Any, labels: Any) -> Value:
    """A picture with boxes; labels that are not one for each box are left out, as in torch.

    Raises:
        InvalidValueError: the letters of `dataformats` do not fit.
    """
    array, layout = _arranged(pixels, dataformats)
    if layout == "NCHW":
        raise InvalidValueError("boxes on a batch of pictures: add_image_with_boxes takes one")
    corners = dense(boxes)
    if isinstance(labels, str):
        labels = [labels]
    if labels is not None and len(labels) != corners.shape[0]:
        labels = None
    return Image(array, layout=layout, boxes=corners, labels=labels, rescale=rescale)


def raw_histogram(limits: Any, counts: Any, *sums: Any) -> Value:
    """A histogram of upper limits and counts; `sums` are its min, max, num, sum, sum of squares.

    Raises:
        InvalidValueError: there are not as many limits as counts.
    """
    if len(limits) != len(counts):
        raise InvalidValueError(f"{len(limits)} bucket_limits for {len(counts)} bucket_counts")
    low, high, num, total, squares = sums
    return Histogram.from_counts(
        counts, limits, low=low, high=high, num=num, total=total, sum_squares=squares
    )


def shades(pixels: Any) -> Any:
    """uint8 and floats as they are, every other dtype as float32, in which 1 is white."""
    array = dense(pixels)
    name = str(array.dtype).removeprefix("torch.")
    if name == "uint8" or "float" in name:
        return array
    return array.float() if is_tensor(array) else array.astype("float32")


def squeezed(samples: Any) -> Any:
    """Samples without axes of one element."""
    return dense(samples).squeeze()


def dense(value: Any) -> Any:
    """A detached tensor as it is, anything else as a numpy array."""
    if is_tensor(value):
        return value.detach()
    import numpy as np

    return np.asarray(value)


def _arranged(pixels: Any, dataformats: Any) -> tuple[Any, str]:
    """Pixels with their axes in the order of one of the layouts that values take."""
    letters = str(dataformats).upper()
    layout = {2: "HW", 3: "CHW", 4: "NCHW"}.get(len(letters), "")
    if not layout or sorted(letters) != sorted(layout):
        raise InvalidValueError(
            f"dataformats {dataformats!r}: expected the letters of NCHW, CHW or HW, in the order "
            "of the axes"
        )
    array = shades(pixels)
    if array.ndim != len(letters):
        raise InvalidValueError(f"dataformats {letters} of shape {tuple(array.shape)}")
    order = [letters.index(axis) for axis in layout]
    return (array.permute(*order) if is_tensor(array) else array.transpose(order)), layout

"""The values that `emit` takes beside numbers: what each one is, and what of it travels.

A value is turned into a `Prepared`: its kind, a few settings, and arrays that may still live on a
device. The emitter copies the arrays into the outbox (after staging, when they are on a device);
all rendering happens in the daemon. A new kind of value is one class here (or in a file of its
own) with its `kind`, and one renderer per sink under the same name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, cast

from sidestep.proto import SidestepError
from sidestep.proto.records import DTYPE_SIZES, Array

_MAX_TEXT_BYTES: Final = 512 << 10


class InvalidValueError(SidestepError, ValueError):
    """A value that cannot be emitted: says what was wrong and what was expected."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What travels of a value.

    Attributes:
        kind: the name under which the sinks know it.
        info: its settings: MessagePack types only.
        arrays: torch tensors on any device, or numpy arrays.
    """

    kind: str
    info: Mapping[str, object] = field(default_factory=dict[str, object])
    arrays: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class EmitContext:
    """What a value may know of the `emit` it is part of.

    Attributes:
        step: the step.
        memory: kept by the client from one `emit` under this tag to the next.
    """

    step: int
    memory: dict[str, Any]


class Value(ABC):
    """Something that can be emitted and is not a plain number."""

    kind: ClassVar[str]

    @abstractmethod
    def prepare(self, context: EmitContext) -> Prepared:
        """What travels of it.

        Raises:
            InvalidValueError: it cannot be emitted.
        """


class Histogram(Value):
    """The distribution of all elements of a tensor; the buckets are made in the daemon.

    Args:
        values: torch tensor, numpy array or sequence of numbers, any shape, any real dtype, at
            least one element, at most 64 MiB. bfloat16 travels as float32. Non-finite elements
            are left out of the buckets.
        bins: number of buckets; None for TensorBoard's own exponential ones.

    Raises:
        InvalidValueError: when emitted, for an empty, complex, sparse or non-numeric input.
    """

    kind = "histogram"

    def __init__(self, values: Any, *, bins: int | None = None) -> None:
        self._values = values
        self._bins = bins

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        values = as_array(self._values, "Histogram")
        if _size(values) == 0:
            raise InvalidValueError("Histogram of an empty tensor: at least one element is needed")
        if self._bins is not None and not 1 <= self._bins <= 4096:
            raise InvalidValueError(f"Histogram bins must be from 1 to 4096, not {self._bins}")
        return Prepared(self.kind, {"bins": self._bins}, (values,))


class Image(Value):
    """One picture; it is encoded as PNG in the daemon.

    Args:
        pixels: torch tensor or numpy array with 1, 3 or 4 channels. uint8 in [0, 255], or any
            float in [0, 1] (clipped; NaN reads as 0).
        layout: ``"CHW"``, ``"HWC"`` or ``"HW"``; None guesses from the shape, CHW first.
        caption: shown beside the picture.

    Raises:
        InvalidValueError: when emitted, for another dtype, rank or number of channels.
    """

    kind = "image"

    def __init__(
        self, pixels: Any, *, layout: str | None = None, caption: str | None = None
    ) -> None:
        self._pixels = pixels
        self._layout = layout
        self._caption = caption

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        pixels = as_array(self._pixels, "Image")
        shape = tuple(int(n) for n in pixels.shape)
        dtype = dtype_name(pixels)
        if dtype != "uint8" and not dtype.startswith(("float", "bfloat")):
            raise InvalidValueError(
                f"Image of {dtype}: expected uint8 in [0, 255] or floats in [0, 1]"
            )
        info: dict[str, object] = {"layout": _image_layout(shape, self._layout)}
        if self._caption is not None:
            info["caption"] = str(self._caption)
        return Prepared(self.kind, info, (pixels,))


class Text(Value):
    """A text in Markdown.

    Args:
        text: at most 512 KiB of UTF-8.

    Raises:
        InvalidValueError: when emitted, if it is no string or too long.
    """

    kind = "text"

    def __init__(self, text: str) -> None:
        self._text = text

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        if not isinstance(cast("object", self._text), str):
            raise InvalidValueError(f"Text takes a str, not {type(self._text).__name__}")
        size = len(self._text.encode("utf-8", "replace"))
        if size > _MAX_TEXT_BYTES:
            raise InvalidValueError(f"Text of {size} bytes: at most {_MAX_TEXT_BYTES}")
        return Prepared(self.kind, {"text": self._text.encode("utf-8", "replace").decode()})


# --- arrays, whatever library they come from ---------------------------------------------------


def is_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor, without importing torch for it."""
    return hasattr(value, "detach") and hasattr(value, "device") and hasattr(value, "dtype")


def on_device(value: Any) -> bool:
    """Whether `value` is a tensor that the CPU cannot read without a transfer."""
    return is_tensor(value) and value.device.type != "cpu"


def dtype_name(array: Any) -> str:
    """Name in numpy of the dtype of a tensor or array (``"bfloat16"`` as torch calls it)."""
    return str(array.dtype).removeprefix("torch.")


def as_array(value: Any, what: str) -> Any:
    """`value` as a dense real tensor (detached, on its device) or numpy array.

    Raises:
        InvalidValueError: it is complex, sparse, or no numbers at all.
    """
    if is_tensor(value):
        array = value.detach()
        if str(array.layout) != "torch.strided":
            raise InvalidValueError(f"{what} of a {array.layout} tensor: call .to_dense() first")
    else:
        import numpy as np

        try:
            array = np.asarray(value)
        except Exception as error:  # noqa: BLE001 - the value's own code, which may raise anything
            raise InvalidValueError(
                f"{what} takes a tensor or an array, not {type(value).__name__}: {error}"
            ) from None
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
    name = dtype_name(array)
    if name not in DTYPE_SIZES and not name.startswith(("bfloat16", "float8")):
        raise InvalidValueError(f"{what} of dtype {name}: expected real numbers")
    return array


def to_host(array: Any) -> Array:
    """The bytes of a CPU tensor or numpy array; dtypes that numpy lacks become float32."""
    import numpy as np

    if is_tensor(array):
        if dtype_name(array) not in DTYPE_SIZES:
            array = array.float()
        array = array.numpy()
    host = np.ascontiguousarray(array)
    flat: Any = host.reshape(-1).view(np.uint8)
    data = memoryview(flat) if host.size else b""
    # `array.shape`, since ascontiguousarray makes one dimension out of none.
    return Array(str(host.dtype), tuple(int(n) for n in array.shape), data)


def _size(array: Any) -> int:
    return int(array.numel() if is_tensor(array) else array.size)


def _image_layout(shape: tuple[int, ...], layout: str | None) -> str:
    channels = (1, 3, 4)
    if layout is None:
        if len(shape) == 2:
            layout = "HW"
        elif len(shape) == 3:
            layout = "CHW" if shape[0] in channels else "HWC"
    fits = {
        "HW": len(shape) == 2,
        "CHW": len(shape) == 3 and shape[0] in channels,
        "HWC": len(shape) == 3 and shape[-1] in channels,
    }
    if layout is None or not fits.get(layout, False) or 0 in shape:
        raise InvalidValueError(
            f"Image of shape {shape} as {layout or 'CHW, HWC or HW'}: expected a non-empty "
            "(C, H, W), (H, W, C) or (H, W) with 1, 3 or 4 channels"
        )
    return layout

"""Protocol buffers of tensors, filled in without a copy of everything as Python objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from tensorboard.compat.proto import types_pb2

if TYPE_CHECKING:
    import numpy.typing as npt

TYPES: Final[Any] = types_pb2  # its members are made at import: no type checker sees them.

_CHUNK: Final = 65_536


def extend(field: Any, array: npt.NDArray[Any]) -> None:
    """Append all elements of `array` to a repeated `field`, some of them at a time."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        field.extend(flat[start : start + _CHUNK].tolist())


def set_shape(tensor: Any, shape: Iterable[int]) -> None:
    """Give the TensorProto `tensor` a shape."""
    tensor.tensor_shape.SetInParent()
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)

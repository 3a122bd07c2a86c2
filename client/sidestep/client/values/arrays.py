"""Arrays of any library: checks that look at shapes and dtypes alone, and their bytes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from sidestep.proto.records import DTYPE_SIZES, Array

from .base import InvalidValueError

_TENSOR_TYPES: Final[set[type]] = set()
"""Types of tensors that were seen: to ask each again costs more than all else that is asked."""


def is_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor, without importing torch for it."""
    kind = type(value)
    if kind in _TENSOR_TYPES:
        return True
    found = hasattr(value, "detach") and hasattr(value, "device") and hasattr(value, "dtype")
    if found and len(_TENSOR_TYPES) < 100:
        _TENSOR_TYPES.add(kind)
    return found


def on_device(value: Any) -> bool:
    """Whether `value` is a tensor that the CPU cannot read without a transfer."""
    return is_tensor(value) and value.device.type != "cpu"


def dtype_name(array: Any) -> str:
    """Name in numpy of the dtype of a tensor or array (``"bfloat16"`` as torch calls it)."""
    return _name(array.dtype)


@lru_cache(maxsize=256)
def _name(dtype_or_layout: Any) -> str:
    return str(dtype_or_layout).removeprefix("torch.")


def as_array(value: Any, what: str) -> Any:
    """`value` as a dense real tensor (detached, on its device) or numpy array.

    Raises:
        InvalidValueError: it is complex, sparse, or no numbers at all.
    """
    if is_tensor(value):
        array = value.detach() if value.requires_grad else value
        if _name(array.layout) != "strided":
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
    if is_tensor(array):
        if dtype_name(array) not in DTYPE_SIZES:
            array = array.float()
        try:
            array = array.numpy()
        except RuntimeError:  # a view that stands for the negative of its memory
            array = array.resolve_neg().numpy()
    shape = array.shape
    if not array.flags.c_contiguous:
        array = array.copy(order="C")
    # As bytes, which every dtype can be seen as; a memoryview knows no float16.
    flat = array.reshape(-1).view("u1")
    return Array(dtype_name(array), shape, flat.data if flat.size else b"")


def size_of(array: Any) -> int:
    """Number of elements of a tensor or array."""
    return int(array.numel() if is_tensor(array) else array.size)

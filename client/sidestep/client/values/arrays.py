"""Arrays of any library: checks that look at shapes and dtypes alone, and their bytes."""

from __future__ import annotations

from typing import Any

from sidestep.proto.records import DTYPE_SIZES, Array

from .base import InvalidValueError


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


def size_of(array: Any) -> int:
    """Number of elements of a tensor or array."""
    return int(array.numel() if is_tensor(array) else array.size)

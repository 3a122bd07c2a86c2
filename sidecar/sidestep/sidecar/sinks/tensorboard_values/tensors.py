"""Tensors as they are: for programs, since no page of TensorBoard shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from sidestep.proto import Value

from ..rendering.arrays import only_array
from .protos import TYPES, extend, set_shape

_FIELDS: Final[Mapping[str, tuple[str, str]]] = {
    "bool": ("DT_BOOL", "bool_val"),
    "float16": ("DT_HALF", "half_val"),
    "float32": ("DT_FLOAT", "float_val"),
    "float64": ("DT_DOUBLE", "double_val"),
    "int8": ("DT_INT8", "int_val"),
    "int16": ("DT_INT16", "int_val"),
    "int32": ("DT_INT32", "int_val"),
    "int64": ("DT_INT64", "int64_val"),
    "uint8": ("DT_UINT8", "int_val"),
    "uint16": ("DT_UINT16", "int_val"),
    "uint32": ("DT_UINT32", "uint32_val"),
    "uint64": ("DT_UINT64", "uint64_val"),
}
_COMPLEX: Final[Mapping[str, tuple[str, str]]] = {
    "float16": ("DT_COMPLEX64", "scomplex_val"),
    "float32": ("DT_COMPLEX64", "scomplex_val"),
    "float64": ("DT_COMPLEX128", "dcomplex_val"),
}


def tensor(value: Value, event: Any) -> None:
    """All elements, where `tensorboard.util.tensor_util.make_ndarray` looks for them."""
    array = only_array(value)
    shape = array.shape
    complex_parts = bool(value.info.get("complex"))
    if complex_parts and (array.ndim == 0 or shape[-1] != 2):
        raise ValueError(f"real and imaginary parts in an array of shape {shape}")
    dtype, field = (_COMPLEX if complex_parts else _FIELDS)[array.dtype.name]
    if field == "half_val":  # the bits of each element
        array = array.view(np.uint16)
    shown = event.summary.value.add(tag=value.tag)
    shown.metadata.plugin_data.plugin_name = "tensor"
    shown.tensor.dtype = getattr(TYPES, dtype)
    set_shape(shown.tensor, shape[:-1] if complex_parts else shape)
    extend(getattr(shown.tensor, field), array)

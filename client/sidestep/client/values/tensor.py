"""Tensors as they are, for programs that read event files."""

from __future__ import annotations

from typing import Any

from .arrays import as_array, is_tensor
from .base import EmitContext, Prepared, Value


class Tensor(Value):
    """A tensor with all its elements; no page of TensorBoard shows it.

    Args:
        tensor: torch tensor or array, any shape, any real or complex dtype, at most 64 MiB.

    Raises:
        InvalidValueError: when emitted, for a sparse or non-numeric input.
    """

    kind = "tensor"

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        parts = _parts(self._tensor)
        array = as_array(self._tensor if parts is None else parts, "Tensor")
        return Prepared(self.kind, {"complex": parts is not None}, (array,))


def _parts(tensor: Any) -> Any:
    """Real and imaginary parts in one more dimension; None of what is real already."""
    if is_tensor(tensor):
        if not tensor.is_complex() or str(tensor.layout) != "torch.strided":
            return None
        import torch

        return torch.view_as_real(tensor.detach().resolve_conj())
    import numpy as np

    try:
        array: Any = np.asarray(tensor)
    except Exception:  # noqa: BLE001 - the value's own code; as_array says what was wrong
        return None
    return np.stack([array.real, array.imag], -1) if array.dtype.kind == "c" else None

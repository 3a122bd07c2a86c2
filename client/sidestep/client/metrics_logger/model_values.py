"""Gradients and weights of a model as values: one histogram a parameter, and the norm of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sidestep import client as sidestep

from ..refused import attempt
from ..values import dtype_name

_WIDE = ("float32", "float64")


def gradient_values(model: Any) -> dict[str, Any]:
    """``gradients/<parameter>`` for each parameter that has a gradient, and ``gradients/norm``.

    Args:
        model: a `torch.nn.Module`; its parameters may live on any device.

    Returns:
        Values by tag; empty when no parameter has a gradient.
    """
    named = [(n, p.grad) for n, p in model.named_parameters() if p.grad is not None]
    return _values("gradients", named)


def weight_values(model: Any) -> dict[str, Any]:
    """``weights/<parameter>`` for each parameter, and ``weights/norm``.

    Args:
        model: a `torch.nn.Module`; its parameters may live on any device.
    """
    return _values("weights", list(model.named_parameters()))


def _values(folder: str, named: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if not named:
        return {}
    norm = attempt(total_norm, [tensor.detach() for _, tensor in named])
    # A parameter may be called "norm": it stays.
    return {f"{folder}/norm": norm} | {f"{folder}/{n}": sidestep.Histogram(t) for n, t in named}


def total_norm(tensors: Sequence[Any]) -> Any:
    """The L2 norm of all elements of all tensors together; nothing waits for a device.

    Args:
        tensors: at least one, of any shape, float dtype and device.

    Returns:
        A 0-d tensor, float32 or float64, on the device of the first.
    """
    import torch

    wide = [t for t in tensors if dtype_name(t) in _WIDE]
    # Halves would be summed well and then rounded, or overflow, as halves.
    narrow = [t for t in tensors if dtype_name(t) not in _WIDE]
    foreach_norm: Any = torch._foreach_norm  # pyright: ignore[reportPrivateUsage,reportPrivateImportUsage]
    with torch.no_grad():
        norms = list(foreach_norm(wide)) if wide else []
        norms += [torch.linalg.vector_norm(t, dtype=torch.float32) for t in narrow]
        device = tensors[0].device
        return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))

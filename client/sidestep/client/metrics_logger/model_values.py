"""Gradients and weights of a model as values, under the tags that a `MetricsLogger` gives them."""

from __future__ import annotations

from typing import Any

from sidestep import client as sidestep


def gradient_values(model: Any) -> dict[str, Any]:
    """``gradients/<parameter>`` for each parameter that has a gradient, and ``gradients/norm``.

    Args:
        model: a `torch.nn.Module`; its parameters may live on any device.

    Returns:
        One value, of which the daemon makes all these; empty when no parameter has a gradient.
    """
    if all(parameter.grad is None for parameter in model.parameters()):
        return {}
    return {"gradients": sidestep.Gradients(model)}


def weight_values(model: Any) -> dict[str, Any]:
    """``weights/<parameter>`` for each parameter, and ``weights/norm``.

    Args:
        model: a `torch.nn.Module`; its parameters may live on any device.
    """
    return {"weights": sidestep.Weights(model)}

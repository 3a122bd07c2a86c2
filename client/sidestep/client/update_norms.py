"""How far an optimizer's last step moved each parameter, from the optimizer's own state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from .values import InvalidValueError

_KNOWN: Final = ("Adam", "AdamW", "SGD")


def update_norms(optimizer: Any, parameters: Sequence[Any]) -> Any:
    """L2 norms of the last updates, without the part of a weight decay that is decoupled.

    (SGD's with momentum is in its buffer, and Adam's in its moments.) Adam and AdamW (Kingma & Ba
    2015, with their bias correction; AMSGrad too): lr · m̂ / (√v̂ + ε). SGD: lr times the momentum
    buffer (with Nesterov's step) or the gradient.

    Args:
        optimizer: whose last `step` is meant.
        parameters: tensors on one device.

    Returns:
        float32, shape (len(parameters),), on the parameters' device; NaN for a parameter that the
        optimizer has not moved yet, or does not have, or moved by a sparse gradient.

    Raises:
        InvalidValueError: the optimizer is none of Adam, AdamW and SGD.
    """
    import torch

    name = type(optimizer).__name__
    if name not in _KNOWN or not hasattr(optimizer, "param_groups"):
        raise InvalidValueError(
            f"the update ratio is known for torch.optim's {', '.join(_KNOWN)}, not for {name}"
        )
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    norms = []
    for parameter in parameters:
        group, state = groups.get(id(parameter)), optimizer.state.get(parameter)
        update = None
        if group is not None:
            update = _sgd(parameter, group, state or {}) if name == "SGD" else _adam(group, state)
        if update is None:
            nothing = torch.full((), float("nan"), dtype=torch.float32, device=parameter.device)
            norms.append(nothing)
        else:
            norms.append(torch.linalg.vector_norm(update.float()))
    return torch.stack(norms)


def _adam(group: Mapping[str, Any], state: Mapping[str, Any] | None) -> Any:
    if not state or "exp_avg" not in state:
        return None
    # 0-d tensors, on the CPU or (fused, capturable) on the device: neither needs to be read here.
    step = state["step"]
    beta1, beta2 = group["betas"]
    first = _local(state["exp_avg"])
    second = _local(state.get("max_exp_avg_sq", state["exp_avg_sq"]))
    scale = (second / (1 - beta2**step)).sqrt() + group["eps"]
    return first / (1 - beta1**step) / scale * group["lr"]


def _sgd(parameter: Any, group: Mapping[str, Any], state: Mapping[str, Any]) -> Any:
    momentum, gradient = group["momentum"], parameter.grad
    direction = state.get("momentum_buffer") if momentum else gradient
    if direction is None or (group["nesterov"] and gradient is None):
        return None
    direction = _local(direction)
    if str(direction.layout) != "torch.strided":
        return None  # a sparse gradient: its indices may repeat
    if group["nesterov"]:
        # The buffer has the sign of the step.
        sign = -1 if group.get("maximize") else 1
        direction = sign * _local(gradient) + momentum * direction
    return direction * group["lr"]


def _local(tensor: Any) -> Any:
    """The shard of a DTensor that this process holds; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor

"""Watches a model: has it looked at once in so many steps of its optimizer."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("sidestep")


class Watch:
    """Looks at a model right before its optimizer's step, when the gradients are complete.

    It hangs on torch's hook for all optimizers: one call a step, where hooks on each parameter
    would cost one call a parameter. Neither the model nor the optimizer is kept alive.

    Args:
        model: a `torch.nn.Module`.
        every: look at the first step, and then once in so many.
        look: given the model.
    """

    def __init__(self, model: Any, every: int, look: Callable[[Any], object]) -> None:
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        self._model = weakref.ref(model)
        self._every = every
        self._look = look
        self._optimizer: Any = None  # a weak reference to the one whose steps are counted
        self._strangers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._steps = 0
        self._over = False
        self._handle = register_optimizer_step_pre_hook(self._before_step)

    def stop(self) -> None:
        """Look no more. Safe to call twice, but not within an optimizer's step."""
        self._over = True
        self._handle.remove()

    def _before_step(self, optimizer: Any, _args: Any, _kwargs: Any) -> None:
        # The hook stays until `stop`: torch is iterating over its hooks, and fails if one goes.
        if self._over:
            return
        try:
            model = self._model()
            if model is None:
                self._over = True
            elif self._is_ours(optimizer, model):
                self._steps += 1
                if (self._steps - 1) % self._every == 0:
                    self._look(model)
        except Exception:  # this is inside the trainer's own optimizer.step()
            self._over = True
            logger.exception("sidestep: watching a model failed; it is watched no more")

    def _is_ours(self, optimizer: Any, model: Any) -> bool:
        """Whether `optimizer` is the first that was seen to own a parameter of the model."""
        ours = self._optimizer and self._optimizer()
        if ours is None and optimizer not in self._strangers:
            parameters = {id(parameter) for parameter in model.parameters()}
            groups = optimizer.param_groups
            if any(id(parameter) in parameters for g in groups for parameter in g["params"]):
                self._optimizer = weakref.ref(optimizer)
                return True
            self._strangers.add(optimizer)
        return ours is optimizer

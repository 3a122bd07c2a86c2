"""Gradients and weights of a whole model: a histogram and a norm of each parameter.

The work is done where the parameters live, at the time of the `emit`, since the next optimizer step
changes their memory; what travels is small. No call here synchronizes with a device.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Final

from .float_bits import BUCKETS, histogram
from .update_norms import update_norms
from .values import EmitContext, InvalidValueError, Prepared, Value, dtype_name, is_tensor

MAX_PARAMETERS: Final = 4000
"""In one value: their histograms must fit into a record."""

TRITON_VARIABLE: Final = "SIDESTEP_TRITON"
"""Set to 1, the histograms on CUDA are made by a Triton kernel, in one pass over memory. Not by
default before it was seen on a GPU: it reads memory by addresses."""

Named = Iterable[tuple[str, Any]]


class _Parameters(Value):
    """What gradients and weights have in common."""

    kind = "parameters"
    _what: ClassVar[str]

    def __init__(self, model: Any) -> None:
        self._model = model

    def prepare(self, context: EmitContext) -> Prepared:
        found = [
            (name, local)
            for name, tensor in self._tensors()
            if (local := _local(tensor)) is not None
        ]
        if not found:
            raise InvalidValueError(f"no {self._what} to show: {self._absent()}")
        if len(found) > MAX_PARAMETERS:
            raise InvalidValueError(
                f"{len(found)} parameters: at most {MAX_PARAMETERS} in one value; pass a part of "
                "them as (name, parameter) pairs, under a tag for each part"
            )
        import torch

        _refuse_capture(found[0][1])
        with torch.no_grad():
            tensors = [tensor for _, tensor in found]
            arrays = [_counts(tensors), *_norms(tensors), *self._extra(tensors)]
        names = "\n".join(name.replace("\n", " ") for name, _ in found)
        info = {"what": self._what, "buckets": BUCKETS}
        return Prepared(self.kind, info, [*arrays, _bytes(names)])

    def _tensors(self) -> Iterator[tuple[str, Any]]:
        raise NotImplementedError

    def _absent(self) -> str:
        raise NotImplementedError

    def _extra(self, tensors: list[Any]) -> list[Any]:
        return []

    def _named(self) -> Named:
        named = getattr(self._model, "named_parameters", None)
        if named is not None:
            return list(named())
        try:
            return [(str(name), parameter) for name, parameter in self._model]
        except (TypeError, ValueError):
            raise InvalidValueError(
                f"{type(self).__name__} takes a torch.nn.Module or (name, parameter) pairs, not "
                f"{type(self._model).__name__}"
            ) from None


class Gradients(_Parameters):
    """The gradients of all parameters at the `emit`: after `backward`, before `zero_grad`.

    Under tag `T` (usually ``"gradients"``) it writes a histogram ``T/<parameter>`` and
    ``T/<parameter>_norm`` (L2) for each parameter that has a gradient, and the totals ``T/norm``
    (L2 over all) and ``T/nonfinite`` (elements that are infinite or NaN).

    Args:
        model: `torch.nn.Module`, or (name, parameter) pairs; at most 4,000 parameters, strided,
            of real floating dtype. Of sharded ones (DTensor) the local shard is taken.

    Raises:
        InvalidValueError: when emitted, when no parameter has a gradient, for a sparse, complex or
            integer one, or while a CUDA graph is being captured.
    """

    _what = "gradients"

    def _tensors(self) -> Iterator[tuple[str, Any]]:
        for name, parameter in self._named():
            gradient = getattr(parameter, "grad", None)
            if gradient is not None:
                yield name, gradient

    def _absent(self) -> str:
        return "no parameter has a .grad; emit after backward() and before zero_grad()"


class Weights(_Parameters):
    """The values of all parameters, as they are at the `emit`.

    Under tag `T` (usually ``"weights"``) it writes a histogram ``T/<parameter>`` and
    ``T/<parameter>_norm`` (L2) for each parameter, and the totals ``T/norm`` and ``T/nonfinite``.
    With an optimizer also ``T/<parameter>_update_ratio``: the L2 norm of its last update, without
    weight decay, over that of the weights.

    Args:
        model: as for `Gradients`.
        optimizer: `torch.optim` Adam, AdamW or SGD of these parameters; emit after its `step`, and
            for SGD without momentum before `zero_grad`.

    Raises:
        InvalidValueError: when emitted, when there is no parameter, for a sparse, complex or
            integer one, for another optimizer, or while a CUDA graph is being captured.
    """

    _what = "weights"

    def __init__(self, model: Any, *, optimizer: Any = None) -> None:
        super().__init__(model)
        self._optimizer = optimizer

    def _tensors(self) -> Iterator[tuple[str, Any]]:
        yield from self._named()

    def _absent(self) -> str:
        return "the model has no parameters"

    def _extra(self, tensors: list[Any]) -> list[Any]:
        if self._optimizer is None:
            return []
        parameters = [parameter for _, parameter in self._named() if _local(parameter) is not None]
        return [update_norms(self._optimizer, parameters)]


def _local(tensor: Any) -> Any:
    """What of `tensor` this process holds; None if that is nothing.

    Raises:
        InvalidValueError: it is no dense tensor of floats.
    """
    if not is_tensor(tensor):
        raise InvalidValueError(f"a parameter is a tensor, not {type(tensor).__name__}")
    tensor = tensor.detach()
    if hasattr(tensor, "to_local"):  # DTensor; never full_tensor(), which communicates
        tensor = tensor.to_local()
    if str(tensor.layout) != "torch.strided":
        raise InvalidValueError(f"a {tensor.layout} parameter or gradient: leave it out")
    if not dtype_name(tensor).startswith(("float", "bfloat")):
        raise InvalidValueError(f"a parameter of {dtype_name(tensor)}: expected floats")
    return tensor if tensor.numel() else None


def _counts(tensors: list[Any]) -> Any:
    """Counts by float bits, int32, (P, `BUCKETS`)."""
    import torch

    if os.environ.get(TRITON_VARIABLE) == "1" and all(_for_kernel(tensor) for tensor in tensors):
        from .float_bits_triton import histograms

        return histograms([tensor.contiguous() for tensor in tensors])
    return torch.stack([histogram(tensor) for tensor in tensors]).to(torch.int32)


def _for_kernel(tensor: Any) -> bool:
    return tensor.is_cuda and dtype_name(tensor) in ("float32", "bfloat16")


def _norms(tensors: list[Any]) -> list[Any]:
    """L2 norms and largest magnitudes, float32, each (P,): a few launches for all."""
    import torch as torch_

    torch: Any = torch_  # the foreach functions are public in all but their names
    tensors = [t if t.element_size() >= 2 else t.float() for t in tensors]
    # torch refuses to narrow.
    double = any(t.dtype == torch.float64 for t in tensors)
    dtype = torch.float64 if double else torch.float32
    return [
        torch.stack(torch._foreach_norm(tensors, order, dtype=dtype)).float()
        for order in (2, float("inf"))
    ]


def _refuse_capture(tensor: Any) -> None:
    if tensor.device.type != "cuda":
        return
    import torch

    if torch.cuda.is_current_stream_capturing():
        raise InvalidValueError("a CUDA graph is being captured: emit outside of the capture")


def _bytes(text: str) -> Any:
    import numpy as np

    return np.frombuffer(text.encode("utf-8", "replace"), np.uint8)

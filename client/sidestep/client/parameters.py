"""Gradients and weights of a whole model: a histogram and a norm of each parameter.

The work is done where the parameters live, at the time of the `emit`, since the next optimizer step
changes their memory; what travels is small. No call here synchronizes with a device.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

from .float_bits import BUCKETS
from .parameter_counts import counted
from .update_norms import update_norms
from .values import EmitContext, InvalidValueError, Prepared, Value, dtype_name, is_tensor

MAX_PARAMETERS: Final = 4000
"""In one value: their histograms must fit into a record."""

_WRAPPERS: Final = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile, FSDP and checkpointing put into names: a curve must not end with them."""


class _Parameters(Value):
    """What gradients and weights have in common."""

    kind = "parameters"
    over_ranks = "asked"
    _what: ClassVar[str]

    def __init__(self, model: Any) -> None:
        # Of an iterator there would be nothing left for the next `emit`.
        self._model = list(model) if isinstance(model, Iterator) else model

    def prepare(self, context: EmitContext) -> Prepared:
        found = [
            (_one_line(name), tensor, local)
            for name, tensor in self._tensors()
            if (local := _local(name, tensor)) is not None
        ]
        if not found:
            raise InvalidValueError(f"no {self._what} to show: {self._absent()}")
        if len(found) > MAX_PARAMETERS:
            raise InvalidValueError(
                f"{len(found)} parameters: at most {MAX_PARAMETERS} in one value; pass a part of "
                "them as (name, parameter) pairs, under a tag for each part"
            )
        names, tensors, locals_ = zip(*found, strict=True)
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            raise InvalidValueError(f"two parameters are called {twice[0]!a:.100}")
        import torch

        _refuse_capture(locals_)
        with torch.no_grad():
            made = counted(locals_, lambda positions: self._extra([tensors[i] for i in positions]))
        text = "\n".join(names[at] for at in made.order)
        info = {"what": self._what, "buckets": BUCKETS}
        return Prepared(self.kind, info, [*made.counts, *made.numbers, _bytes(text)])

    @abstractmethod
    def _tensors(self) -> Iterator[tuple[str, Any]]: ...

    @abstractmethod
    def _absent(self) -> str: ...

    def _extra(self, _tensors: Sequence[Any]) -> list[Any]:
        return []

    def _named(self) -> list[tuple[str, Any]]:
        named = getattr(self._model, "named_parameters", None)
        if named is not None:
            return [(_plain_name(name), parameter) for name, parameter in named()]
        pairs = self._model.items() if isinstance(self._model, Mapping) else self._model
        try:
            return [(str(name), parameter) for name, parameter in pairs]
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
            of real floating dtype, on any devices; read as float32, beyond which they count as
            infinite. Of sharded ones (DTensor) the local shard is taken. What torch.compile and
            FSDP put into names is left out of the tags.

    Raises:
        InvalidValueError: when emitted, when no parameter has a gradient, for a sparse, complex or
            integer one, a name that comes twice, or while a CUDA graph is being captured.
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

    def _extra(self, tensors: Sequence[Any]) -> list[Any]:
        return [] if self._optimizer is None else [update_norms(self._optimizer, tensors)]


def _plain_name(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _one_line(name: str) -> str:
    """`name` as it can travel: valid Unicode, without the end of a line."""
    return name.replace("\n", " ").encode("utf-8", "replace").decode()


def _local(name: str, tensor: Any) -> Any:
    """What of `tensor` this process holds; None if that is nothing.

    Raises:
        InvalidValueError: it is no dense tensor of floats.
    """
    what = f"parameter {name!a:.100}"
    if not is_tensor(tensor):
        raise InvalidValueError(f"{what}: a parameter is a tensor, not {type(tensor).__name__}")
    try:
        tensor = tensor.detach()
        if hasattr(tensor, "to_local"):  # DTensor; never full_tensor(), which communicates
            tensor = tensor.to_local()
        layout, dtype, nothing = str(tensor.layout), dtype_name(tensor), not tensor.numel()
    except Exception as error:  # one without a shape yet, or anybody's own class
        raise InvalidValueError(f"{what}: {error}") from error
    if layout != "torch.strided":
        raise InvalidValueError(f"{what} or its gradient is {layout}: leave it out")
    if not dtype.startswith(("float", "bfloat")) or "_x2" in dtype:  # two in a byte
        raise InvalidValueError(f"{what} of {dtype}: expected floats; leave it out")
    if tensor.device.type == "meta":
        raise InvalidValueError(f"{what} is on the meta device, and has no content")
    return None if nothing else tensor.resolve_neg()


def _refuse_capture(tensors: Sequence[Any]) -> None:
    if not any(tensor.device.type == "cuda" for tensor in tensors):
        return
    import torch

    if torch.cuda.is_current_stream_capturing():
        raise InvalidValueError("a CUDA graph is being captured: emit outside of the capture")


def _bytes(text: str) -> Any:
    import numpy as np

    return np.frombuffer(text.encode(), np.uint8)

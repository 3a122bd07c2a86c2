"""Graphs of models: traced in the trainer, where the model is; they travel as they are shown."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable
from typing import Any

from .base import EmitContext, InvalidValueError, Prepared, Value


class Graph(Value):
    """The graph of a model: its modules and operations, traced with an example of its input.

    The only value that runs something in the trainer: `emit` takes as long as tracing does, with
    the model in evaluation mode meanwhile. It needs the package ``tensorboard`` there.

    Args:
        model: a `torch.nn.Module` or script function.
        inputs: a tensor or a tuple of them, as `torch.jit.trace` takes it, where the model is.
        use_strict_trace: False to trace models that return lists or dicts.
        verbose: print the trace.

    Raises:
        InvalidValueError: when emitted, if it cannot be traced, or a package is missing.
    """

    kind = "graph"

    def __init__(
        self,
        model: Any,
        inputs: Any = None,
        *,
        use_strict_trace: bool = True,
        verbose: bool = False,
    ) -> None:
        self._make: Callable[[], tuple[Any, Any]] = lambda: _traced(
            model, inputs, use_strict_trace, verbose
        )

    @classmethod
    def from_onnx(cls, path: str | os.PathLike[str]) -> Graph:
        """The graph in an ONNX file; it is read when it is emitted, by the package ``onnx``."""
        graph = cls(None)
        graph._make = lambda: (_of_onnx(os.fspath(path)), None)
        return graph

    @classmethod
    def from_protos(cls, graph_def: Any, run_metadata: Any = None) -> Graph:
        """A graph that is there already, as protocol buffers ``GraphDef`` and ``RunMetadata``."""
        graph = cls(None)
        graph._make = lambda: (graph_def, run_metadata)
        return graph

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        import numpy as np

        graph_def, run_metadata = self._make()
        messages = [graph_def] if run_metadata is None else [graph_def, run_metadata]
        try:
            data = [message.SerializeToString() for message in messages]
        except Exception as error:
            raise InvalidValueError(f"Graph takes protocol buffers: {error}") from error
        return Prepared(self.kind, {}, [np.frombuffer(part, np.uint8) for part in data])


def _traced(model: Any, inputs: Any, strict: bool, verbose: bool) -> tuple[Any, Any]:
    try:
        # Not torch.utils.tensorboard's SummaryWriter: it alone knows how to read a trace.
        from torch.utils.tensorboard._pytorch_graph import graph
    except ImportError as error:
        raise InvalidValueError(
            f"Graph needs torch and tensorboard in the trainer ({error}): pip install tensorboard"
        ) from error
    try:
        # It prints its errors, and torch.jit.trace says at each call that there is better now.
        hush = contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO())
        with hush, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            graph_def, run_metadata = graph(model, inputs, verbose, strict)
    except Exception as error:
        raise InvalidValueError(
            f"Graph of {type(model).__name__} cannot be traced: {error!s:.500}"
        ) from error
    return graph_def, run_metadata


def _of_onnx(path: str) -> Any:
    try:
        from torch.utils.tensorboard._onnx_graph import load_onnx_graph

        with contextlib.redirect_stdout(io.StringIO()):  # it prints each node
            return load_onnx_graph(path)
    except ImportError as error:
        raise InvalidValueError(
            f"Graph.from_onnx needs torch, tensorboard and onnx in the trainer ({error}): "
            "pip install tensorboard onnx"
        ) from error
    except Exception as error:
        raise InvalidValueError(f"{path!r:.200} cannot be read as ONNX: {error!s:.300}") from error

"""Texts as TensorBoard shows them."""

from __future__ import annotations

from typing import Any, Final

from tensorboard.compat.proto import types_pb2

from sidestep.proto import Value

_TYPES: Final[Any] = types_pb2  # its members are made at import: no type checker sees them


def text(value: Value, event: Any) -> None:
    """A text, which TensorBoard reads as Markdown."""
    content = value.info.get("text")
    if not isinstance(content, str):
        raise TypeError(f"text must be a string, not {type(content).__name__}")
    shown = event.summary.value.add(tag=f"{value.tag}/text_summary")
    shown.metadata.plugin_data.plugin_name = "text"  # its content, version 0, is no bytes
    shown.tensor.dtype = _TYPES.DT_STRING
    shown.tensor.tensor_shape.dim.add(size=1)
    shown.tensor.string_val.append(content.encode("utf-8", "replace"))

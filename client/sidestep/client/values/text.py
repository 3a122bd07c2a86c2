"""Texts in Markdown."""

from __future__ import annotations

from typing import Final, cast

from .base import EmitContext, InvalidValueError, Prepared, Value

_MAX_TEXT_BYTES: Final = 512 << 10


class Text(Value):
    """A text in Markdown.

    Args:
        text: at most 512 KiB of UTF-8.

    Raises:
        InvalidValueError: when emitted, if it is no string or too long.
    """

    kind = "text"

    def __init__(self, text: str) -> None:
        self._text = text

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        if not isinstance(cast("object", self._text), str):
            raise InvalidValueError(f"Text takes a str, not {type(self._text).__name__}")
        size = len(self._text)  # no character is less than a byte: one that is huge is not copied
        if size <= _MAX_TEXT_BYTES:
            size = len(self._text.encode("utf-8", "replace"))
        if size > _MAX_TEXT_BYTES:
            raise InvalidValueError(f"Text of {size} bytes: at most {_MAX_TEXT_BYTES}")
        return Prepared(self.kind, {"text": self._text.encode("utf-8", "replace").decode()})

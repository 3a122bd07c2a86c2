"""Layouts of charts: which scalars TensorBoard draws together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from .base import EmitContext, InvalidValueError, Prepared, Value

_KINDS: Final = ("Multiline", "Margin")
_MAX_CHARTS: Final = 1000
_MAX_TAGS: Final = 1000
_MAX_TEXT_BYTES: Final = 4096


class CustomScalars(Value):
    """Charts of several scalars, for TensorBoard's CUSTOM SCALARS page.

    The page has one layout: the last one that is emitted. The tag says nothing to TensorBoard.

    Args:
        layout: ``{category: {title: ["Multiline", tags] or ["Margin", [value, lower, upper]]}}``,
            at most 1,000 charts of 1,000 tags. The tags of Multiline are regular expressions.

    Raises:
        InvalidValueError: when emitted, for anything else.
    """

    kind = "custom_scalars"

    def __init__(self, layout: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
        self._layout = layout

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        layout = {
            _text(category): {_text(title): _chart(title, chart) for title, chart in _items(charts)}
            for category, charts in _items(self._layout)
        }
        count = sum(map(len, layout.values()))
        if not 0 < count <= _MAX_CHARTS:
            raise InvalidValueError(f"CustomScalars of {count} charts: expected 1 to {_MAX_CHARTS}")
        return Prepared(self.kind, {"layout": layout})


def _items(mapping: Any) -> list[tuple[Any, Any]]:
    if not _is_mapping(mapping):
        raise InvalidValueError(
            "CustomScalars takes {category: {title: [kind, tags]}}; found "
            f"{type(mapping).__name__} in the place of a mapping"
        )
    return list(mapping.items())


def _chart(title: object, chart: Any) -> list[object]:
    if not _is_list(chart) or len(chart) != 2:
        raise InvalidValueError(f"CustomScalars chart {title!r:.80}: expected [kind, tags]")
    kind, tags = chart
    if kind not in _KINDS:
        raise InvalidValueError(
            f"CustomScalars chart {title!r:.80} of kind {kind!r:.40}: expected Multiline or Margin"
        )
    if not _is_list(tags):
        raise InvalidValueError(f"CustomScalars chart {title!r:.80}: expected a list of tags")
    names = [_text(tag) for tag in tags]
    if not 0 < len(names) <= _MAX_TAGS or (kind == "Margin" and len(names) != 3):
        wanted = "3 (value, lower, upper)" if kind == "Margin" else f"1 to {_MAX_TAGS}"
        raise InvalidValueError(
            f"CustomScalars chart {title!r:.80} of kind {kind} has {len(names)} tags, not {wanted}"
        )
    return [kind, names]


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value.encode("utf-8", "replace")) > _MAX_TEXT_BYTES:
        raise InvalidValueError(
            "CustomScalars: categories, titles and tags are str of at most "
            f"{_MAX_TEXT_BYTES} bytes, not {value!r:.100}"
        )
    return value.encode("utf-8", "replace").decode()

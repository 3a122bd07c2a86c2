"""A configuration in the types that travel: what has none of them becomes its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_MAX_DEPTH: Final = 16


def plain_config(config: Mapping[Any, Any]) -> dict[str, object]:
    """A configuration in MessagePack's types: what has no such type becomes its `str`."""
    return _mapping(config, 0)


def flat_config(config: Mapping[Any, Any]) -> dict[str, bool | int | float | str]:
    """A configuration of one level: nested names are joined with "/".

    Numbers, bools and texts stay what they are; everything else becomes its text.
    """
    flat: dict[str, bool | int | float | str] = {}
    for key, value in _mapping(config, 0).items():
        if isinstance(value, dict) and value:
            flat |= {f"{key}/{name}": item for name, item in flat_config(value).items()}
        else:
            flat[key] = value if isinstance(value, (bool, int, float, str)) else _text(value)
    return flat


def _mapping(config: Mapping[Any, Any], depth: int) -> dict[str, object]:
    return {_text(key): _plain(value, depth) for key, value in config.items()}


def _plain(value: Any, depth: int) -> object:
    if depth > _MAX_DEPTH:
        return _text(value)
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, (bool, bytes, float)):
        return value
    if isinstance(value, int):
        return int(value) if -(1 << 63) <= value < 1 << 64 else _text(value)
    if isinstance(value, Mapping):
        return _mapping(value, depth + 1)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, depth + 1) for item in value]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a numpy scalar
        item = value.item()
        return _plain(item, depth + 1)
    return _text(value)


def _text(value: object) -> str:
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - somebody else's code, and not worth a training run
        text = f"<{type(value).__name__}>"
    return text.encode("utf-8", "replace").decode()

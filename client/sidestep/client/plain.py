"""A configuration in the types that travel: what has none of them becomes its text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

_MAX_DEPTH: Final = 16
_MAX_SETTING: Final = 4096


def plain_config(config: Mapping[Any, Any]) -> dict[str, object]:
    """A configuration in MessagePack's types: what has no such type becomes its `str`."""
    return _mapping(config, 0)


def flat_config(config: Mapping[Any, Any]) -> dict[str, bool | int | float | str]:
    """A configuration as hyperparameters: of one level, nested names joined with "/".

    Bools, texts (their first 4,096 characters) and finite numbers of 64 bits stay what they are;
    everything else becomes its text. One that is odd must not take the others with it.
    """
    flat: dict[str, bool | int | float | str] = {}
    for key, value in _mapping(config, 0).items():
        if isinstance(value, dict) and value:
            flat |= {f"{key}/{name}": item for name, item in flat_config(value).items()}
        else:
            flat[key or "''"] = _setting(value)
    return flat


def _setting(value: object) -> bool | int | float | str:
    if isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return value
    return _text(value)[:_MAX_SETTING]


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

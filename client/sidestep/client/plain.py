"""A configuration in the types that travel, without secrets: what has no type becomes its text."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Final

from .veil import HIDDEN, is_secret, known_secrets, veiled

_MAX_DEPTH: Final = 16
_MAX_SETTING: Final = 4096


def plain_config(config: Mapping[Any, Any]) -> dict[str, object]:
    """A configuration in MessagePack's types: what has no such type becomes its `str`.

    What is a secret, see `veil`, becomes ``***``.
    """
    return _mapping(config, 0, known_secrets(os.environ))


def plain_text(text: str) -> str:
    """A text that travels, without the secrets of the environment."""
    return veiled(text, known_secrets(os.environ))


def flat_config(config: Mapping[Any, Any]) -> dict[str, bool | int | float | str]:
    """A configuration as hyperparameters: of one level, nested names joined with "/".

    Bools, texts (their first 4,096 characters) and finite numbers of 64 bits stay what they are;
    everything else becomes its text. One that is odd must not take the others with it.
    """
    flat: dict[str, bool | int | float | str] = {}
    for key, value in plain_config(config).items():
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
    return _text(value, ())[:_MAX_SETTING]


def _mapping(config: Mapping[Any, Any], depth: int, known: tuple[str, ...]) -> dict[str, object]:
    named = ((_text(key, known), value) for key, value in config.items())
    return {k: HIDDEN if is_secret(k, v) else _plain(v, depth, known) for k, v in named}


def _plain(value: Any, depth: int, known: tuple[str, ...]) -> object:
    if depth > _MAX_DEPTH or isinstance(value, str):
        return _text(value, known)
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, bytes):
        return HIDDEN if any(secret.encode() in value for secret in known) else value
    if isinstance(value, int):
        return int(value) if -(1 << 63) <= value < 1 << 64 else _text(value, known)
    if isinstance(value, Mapping):
        return _mapping(value, depth + 1, known)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, depth + 1, known) for item in value]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a numpy scalar
        item = value.item()
        return _plain(item, depth + 1, known)
    return _text(value, known)


def _text(value: object, known: tuple[str, ...]) -> str:
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - somebody else's code, and not worth a training run
        text = f"<{type(value).__name__}>"
    return veiled(text.encode("utf-8", "replace").decode(), known)

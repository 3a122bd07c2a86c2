"""The table of the daemon's settings in the sidecar's README, made of the settings themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import SecretStr

from sidestep.sidecar.config import SidecarSettings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

BEGIN, END = "<!-- settings: make generated -->", "<!-- /settings -->"

_DEFAULTS = {"state_dir": "`~/.local/state/sidestep`", "alarms": "all on"}
"""Defaults that are made on the spot, in a reader's words."""

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of"}


def renewed(readme: str) -> str:
    """The README with the table as it must be.

    Raises:
        ValueError: the README has no place for it.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README has no lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{table()}{END}{after}"


def table() -> str:
    """One row a setting: its key, its type and limits, its default, what it is."""
    lines = ["| key | value | default | what it is |", "|---|---|---|---|"]
    for name, field in SidecarSettings.model_fields.items():
        assert field.description, f"{name} does not say what it is"
        text = field.description.replace("|", "\\|")
        lines.append(f"| `{name}` | {_value(field)} | {_default(name, field)} | {text} |")
    return "\n".join(lines) + "\n"


def _value(field: FieldInfo) -> str:
    limits = [
        f"{_SIGNS[name]} {getattr(limit, name):,}"
        for limit in field.metadata
        for name in _SIGNS
        if hasattr(limit, name)
    ]
    return " ".join([_kind(field.annotation), *limits])


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{one}`" for one in get_args(annotation))
    kinds = [one for one in get_args(annotation) if one is not type(None)]
    if get_origin(annotation) in (list, tuple, set, frozenset):
        return f"list of {_kind(kinds[0])}"
    if kinds and get_origin(annotation) is not dict:
        return " or ".join(_kind(one) for one in kinds)
    words = {
        str: "text",
        SecretStr: "text",
        Path: "path",
        bool: "`true` or `false`",
        int: "integer",
        float: "number",
    }
    return words.get(annotation, "mapping")


def _default(name: str, field: FieldInfo) -> str:
    if name in _DEFAULTS:
        return _DEFAULTS[name]
    default: Any = field.get_default(call_default_factory=True, validated_data={})
    if default is None or default in ((), [], {}):
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, float):
        return f"{default:g}"
    assert isinstance(default, (str, int)), f"say the default of {name} in _DEFAULTS"
    return f"{default}" if isinstance(default, int) else f"`{default}`"

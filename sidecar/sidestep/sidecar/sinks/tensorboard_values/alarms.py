"""Transitions of alarms as TensorBoard shows them: a text in Markdown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sidestep.proto import Value

from .text import text


def alarm(value: Value, event: Any) -> None:
    """What fell, from where to where, since which step, and what to look at."""
    info = value.info
    words = (
        f"**{info['state']}** (before: {info['previous']}) `{info['representation']}` "
        f"at step {value.step:,}\n\n{info['text']}"
    )
    text(replace(value, info={"text": words}), event)

"""Transitions of alarms as W&B knows them: alerts of a run, which it mails or posts."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from sidestep.proto import Value

from .. import alarms

KIND: Final = alarms.KIND
"""The kind of value that becomes an alert, and no entry of a row."""

_LEVELS: Final[Mapping[str, str]] = {"WARN": "WARN", "COLLAPSED": "ERROR", "NONFINITE": "ERROR"}
"""Every other state is worth knowing, and no more."""

_MAX_TITLE: Final = 63
_AT_ONCE: Final = timedelta(milliseconds=1)
"""W&B holds back alerts of one title for a while; zero it takes for its default, a minute."""


def alert(run: Any, value: Value) -> None:
    """Have `run` send the alert.

    Raises:
        KeyError: the value is not as its kind says.
        Exception: whatever wandb raises when wandb-core is gone.
    """
    info = value.info
    state = str(info["state"])
    run.alert(
        title=f"{state}: {info['representation']}"[:_MAX_TITLE],
        text=f"{info['representation']} at step {value.step:,}: {info['previous']} to {state}. "
        f"{info['text']}",
        level=_LEVELS.get(state, "INFO"),
        wait_duration=_AT_ONCE,
    )

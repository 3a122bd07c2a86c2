"""Counts what `emit` refuses, and says why, once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from .checks import shown
from .values import InvalidValueError

logger = logging.getLogger("sidestep")

_MAX_LOGGED: Final = 100
"""Different rejections that are logged; the rest is only counted."""


class Rejections:
    """The rejected values of a client.

    Args:
        publish: told of each new count.

    Attributes:
        count: how many there were.
    """

    def __init__(self, publish: Callable[[int], None]) -> None:
        self.count = 0
        self._publish = publish
        self._logged: set[tuple[str, str]] = set()

    def note(self, tag: object, reason: str, count: int = 1) -> InvalidValueError:
        """Count a rejection and log the first of its kind; the error that says it."""
        self.count += count
        self._publish(self.count)
        name = tag[:200] if isinstance(tag, str) else shown(tag)
        key = (name, reason[:40])
        if key not in self._logged and len(self._logged) < _MAX_LOGGED:
            self._logged.add(key)
            logger.warning("sidestep: rejected %r: %s", name, reason)
        return InvalidValueError(f"{name!r}: {reason}")

    def note_error(self, tag: object, error: Exception, count: int = 1) -> InvalidValueError:
        """The same, for whatever was raised because of the value."""
        try:
            reason = str(error)
        except Exception:  # noqa: BLE001 - an exception can be of anybody's making
            reason = "an error that cannot be shown"
        known = isinstance(error, InvalidValueError)
        noted = self.note(tag, reason if known else f"{type(error).__name__}: {reason}", count)
        noted.__cause__ = error.__cause__ if known else error
        return noted

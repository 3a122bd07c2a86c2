"""What could not be made into a value: refused, counted and logged under its tag like any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .values import EmitContext, InvalidValueError, Prepared, Value


class Refused(Value):
    """Stands in an `emit` for a value whose making failed, so that the rest goes through.

    Args:
        error: why it failed.
    """

    kind = "refused"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        if isinstance(self._error, InvalidValueError):
            raise self._error
        raise InvalidValueError(f"{type(self._error).__name__}: {self._error}") from self._error


def attempt(make: Callable[..., Any], *arguments: Any) -> Any:
    """What `make(*arguments)` returns, or a `Refused` that says why it does not."""
    try:
        return make(*arguments)
    except Exception as error:  # noqa: BLE001 - the trainer's own data, and other people's code
        return Refused(error)

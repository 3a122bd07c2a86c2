"""Waits for a condition, with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

POLL_S = 0.01


def wait_until(
    condition: Callable[[], T],
    timeout_s: float,
    what: Callable[[], Any] | str,
    poll_s: float = POLL_S,
) -> T:
    """The first true thing that `condition` returns.

    Args:
        condition: asked again and again.
        timeout_s: how long.
        what: what was waited for, for the message when it does not come; called only then.
        poll_s: seconds between two questions.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            said = what() if callable(what) else what
            raise AssertionError(f"not within {timeout_s:g} s: {said}")
        time.sleep(poll_s)
    return found

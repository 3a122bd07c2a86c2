"""Imports a module of ours when it is first asked for, and lets no fork fall into the middle of it.

A module that another thread was importing at the moment of a fork stays locked in the child for
ever: a DataLoader's worker that asks for the same value would hang.
"""

from __future__ import annotations

import os
import threading
from importlib import import_module
from types import ModuleType

_PATIENCE_S = 5.0  # an import takes milliseconds; a fork must not hang for one that does not end

_lock = threading.RLock()
_held: list[bool] = []


def imported(name: str, package: str) -> ModuleType:
    """The module; see `importlib.import_module`.

    Raises:
        ImportError: it cannot be imported.
    """
    with _lock:
        return import_module(name, package)


def _before_fork() -> None:
    _held.append(_lock.acquire(timeout=_PATIENCE_S))


def _after_fork() -> None:
    if _held.pop():
        _lock.release()


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603 - held by a thread that is not there, if it was not to be had
    _held.clear()
    _lock = threading.RLock()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)

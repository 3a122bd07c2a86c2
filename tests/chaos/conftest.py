"""Makes the shared fixtures known here."""

from __future__ import annotations

from tests.support.fixtures import connect, sandbox, train

__all__ = ["connect", "sandbox", "train"]

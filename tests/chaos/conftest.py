"""Makes the shared fixtures known here."""

from __future__ import annotations

from tests.support.beside import beside, daemon
from tests.support.fixtures import connect, sandbox, train

__all__ = ["beside", "connect", "daemon", "sandbox", "train"]

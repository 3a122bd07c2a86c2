"""What both ends of a conversation share: how long silence may last, and the action to send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .. import messages as m

PING_S: Final = 1.0
"""A sign of life at least this often."""

DEAD_S: Final = 5.0
"""A peer that was silent for so long is taken for dead."""


@dataclass(frozen=True, slots=True)
class Send:
    """Put this message on the wire."""

    message: m.Message

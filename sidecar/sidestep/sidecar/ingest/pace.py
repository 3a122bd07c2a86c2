"""How often clients shall send, by how many there are.

A message costs both sides as much as a thousand numbers do, whatever is in it. One client sends up
to 40 a second, so that a number is seen soon; where many do, each may wait a little longer.
"""

from __future__ import annotations

from typing import Final

_EACH_MS: Final = 0.8
"""For each client that is connected: together they shall send some 1,250 messages a second."""

_LEAST_MS: Final = 25
"""What they wait anyway. At the other end they make it no more than 100 ms."""


def pace_ms(clients: int) -> int:
    """The milliseconds between two messages of one of so many clients; 0 for as it likes."""
    wanted = int(_EACH_MS * clients)
    return wanted if wanted > _LEAST_MS else 0

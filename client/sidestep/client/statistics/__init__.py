"""Pure functions from the rows of a representation to its moments and cheap statistics.

They run wherever their input lives, in float32, and never read a result: no branch depends on
data, so that nothing synchronizes and `torch.compile` traces them whole. Rows with a non-finite
element are left out by masks. torch is imported with this package: import it where it is used.
"""

from __future__ import annotations

from .draws import drawn_positions, seed_of
from .extras import EXTRAS, PAIRED_EXTRAS
from .moments import Plan, moments, result_numbers

__all__ = [
    "EXTRAS",
    "PAIRED_EXTRAS",
    "Plan",
    "drawn_positions",
    "moments",
    "result_numbers",
    "seed_of",
]

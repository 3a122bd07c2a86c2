"""Random draws without a generator: a hash of the step and a counter, alike on every device.

A generator on a device has a state that a trainer's own draws share, and seeding one costs a copy
to the device. Integer arithmetic below 2⁶³ is exact everywhere and needs neither.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch

_MASK: Final = 0xFFFFFFFF
_MULTIPLIER: Final = 0x45D9F3B
"""Of a 32-bit integer hash (xor-shift by 16, multiply, twice); below 2³¹: products are exact."""

_GOLDEN: Final = 0x9E3779B9
"""2³² divided by the golden ratio: spreads successive steps over the seeds."""


def seed_of(step: int) -> int:
    """A seed below 2³² for a step, which may be any 64-bit integer."""
    return _mixed_number((step & _MASK) ^ _mixed_number(((step >> 32) & _MASK) ^ _GOLDEN))


def hashes(count: int, seed: int, device: Any) -> Any:
    """`count` hashes in [0, 2³²), int64, on `device`."""
    x = torch.arange(count, dtype=torch.int64, device=device) ^ seed
    for _ in range(2):
        x = ((x >> 16) ^ x) * _MULTIPLIER & _MASK
    return (x >> 16) ^ x


def drawn_positions(images: int, positions: int, seed: int, device: Any) -> Any:
    """One position for each image, uniform in [0, positions): int64 of shape (images,)."""
    return hashes(images, seed, device) % positions


def directions(dimensions: int, count: int, seed: int, device: Any) -> Any:
    """Unit vectors, uniform on the sphere: float32 of shape (dimensions, count), a column each."""
    total = dimensions * count
    bits = hashes(2 * total, seed, device).float().mul(2.0**-32)
    # Box-Muller; the first factor is kept off zero, whose logarithm is infinite.
    radius = bits[:total].clamp(min=2.0**-32).log().mul(-2).sqrt()
    normal = (radius * bits[total:].mul(2 * math.pi).cos()).reshape(dimensions, count)
    return normal / torch.linalg.vector_norm(normal, dim=0).clamp(min=1e-12)


def _mixed_number(x: int) -> int:
    for _ in range(2):
        x = ((x >> 16) ^ x) * _MULTIPLIER & _MASK
    return (x >> 16) ^ x

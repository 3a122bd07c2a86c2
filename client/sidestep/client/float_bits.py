"""Histograms whose buckets are a float's own bits: sign, exponent and three bits of mantissa.

The bucket of a float32 is its upper 12 bits, so that no range has to be known beforehand: no pass
for a minimum and a maximum, no synchronization, and histograms of shards, ranks and steps add up
exactly. Eight buckets an octave are as fine as TensorBoard's own (each a tenth wider than the one
before). Layout of a row of `BUCKETS` counts:

    0 … 2039      positive: exponent (8 bits), mantissa (3 bits); 0 … 7 are the denormals
    2040          +∞;  2041 … 2047 NaN
    2048 … 4095   the same with a negative sign
    4096          zeros of either sign, which are in no other bucket

A NaN whose payload is all in the lower 20 bits, which no arithmetic makes, counts as infinite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

BUCKETS: Final = 4097
ZEROS: Final = 4096

_KEYS: Final = 4096
_NEGATIVE: Final = 2048
_FLOAT32_SHIFT: Final = 20
_BFLOAT16_SHIFT: Final = 4  # a bfloat16 is the upper half of a float32
_DEVICE_CHUNK: Final = 1 << 22
"""Elements at a time: the indices of a large matrix would take twice its memory."""

_CPU_CHUNK: Final = 1 << 16
"""Elements at a time: what is made of them stays in the processor's cache."""


def histogram(values: Any) -> Any:
    """Counts of the elements of `values` by their bits.

    On a device without a synchronization, whatever the values are.

    Args:
        values: torch tensor of any shape (also empty) and real floating dtype, strided. All but
            bfloat16 is read as float32: what float32 cannot hold counts as infinite or zero.

    Returns:
        int64, shape (`BUCKETS`,), on the device of `values`.
    """
    import torch

    if values.device.type == "cpu":
        return torch.from_numpy(histogram_on_cpu(values).counts)
    counts = torch.zeros(BUCKETS, dtype=torch.int64, device=values.device)
    for chunk in values.detach().reshape(-1).split(_DEVICE_CHUNK):
        if chunk.numel():
            _count_on_device(_readable(chunk), counts)
    return counts


@dataclass(frozen=True, slots=True)
class OnCpu:
    """What one pass over a tensor on the CPU finds.

    Attributes:
        counts: numpy int64, (`BUCKETS`,).
        largest: magnitude, as a float32 holds it; NaN if any element is, 0 of nothing.
        norm: L2; infinite where float32 has no squares.
    """

    counts: Any
    largest: float
    norm: float


def histogram_on_cpu(values: Any) -> OnCpu:
    """The histogram, the norm and the largest magnitude of a tensor on the CPU."""
    import numpy as np
    import torch

    counts = np.zeros(BUCKETS, np.int64)
    largest, squares = 0, 0.0
    flat = values.detach().reshape(-1)
    half = flat.dtype == torch.bfloat16
    if half:  # which numpy has not
        data = flat.view(torch.int16).numpy().view(np.uint16)
    else:  # nor has it those of eight bits
        data = (flat if flat.element_size() >= 2 else flat.float()).numpy()
    # In numpy: torch would wake its threads for each chunk.
    for start in range(0, len(data), _CPU_CHUNK):
        chunk = data[start : start + _CPU_CHUNK]
        with np.errstate(all="ignore"):  # what float32 cannot hold
            if half:
                bits, wide = chunk, (chunk.astype(np.uint32) << 16).view(np.float32)
            else:
                narrow = chunk.astype(np.float32, copy=False)
                bits, wide = narrow.view(np.uint32), chunk if data.itemsize == 8 else narrow
            # It adds up in pairs; torch's norms are one in thirty thousand off at this size.
            squares += float(np.square(wide).sum())
        keys = (bits >> (_BFLOAT16_SHIFT if half else _FLOAT32_SHIFT)).astype(np.intp)
        found = np.bincount(keys, minlength=_KEYS)
        magnitudes = bits & (0x7FFF if half else 0x7FFFFFFF)
        # As integers they are in the order of their magnitudes, with NaN above everything.
        largest = max(largest, int(magnitudes.max(initial=0)) << (16 if half else 0))
        # Zeros share their key with the smallest denormals, and are looked for when there are any.
        if found[0] or found[_NEGATIVE]:
            zeros = len(bits) - np.count_nonzero(magnitudes)
            positive = len(bits) - np.count_nonzero(bits)
            found[0] -= positive
            found[_NEGATIVE] -= zeros - positive
            counts[ZEROS] += zeros
        counts[:_KEYS] += found
    return OnCpu(counts, float(np.array(largest, np.uint32).view(np.float32)), math.sqrt(squares))


def _readable(flat: Any) -> Any:
    """What `_keys` can see the bits of."""
    import torch

    return flat if flat.dtype in (torch.float32, torch.bfloat16) else flat.float()


def _keys(flat: Any) -> Any:
    import torch

    if flat.dtype == torch.bfloat16:
        return (flat.view(torch.int16) >> _BFLOAT16_SHIFT) & (_KEYS - 1)
    return (flat.view(torch.int32) >> _FLOAT32_SHIFT) & (_KEYS - 1)


def _count_on_device(flat: Any, counts: Any) -> None:
    """By `scatter_add_` into integers: `bincount` would read its maximum back."""
    import torch

    keys = torch.where(flat == 0, ZEROS, _keys(flat).to(torch.int64))
    counts.scatter_add_(0, keys, torch.ones_like(keys))

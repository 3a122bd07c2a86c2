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

from typing import Any, Final

BUCKETS: Final = 4097
ZEROS: Final = 4096

_KEYS: Final = 4096
_FLOAT32_SHIFT: Final = 20
_BFLOAT16_SHIFT: Final = 4  # a bfloat16 is the upper half of a float32
_CHUNK: Final = 1 << 22
"""Elements at a time: the indices of a large matrix would take twice its memory."""


def histogram(values: Any) -> Any:
    """Counts of the elements of `values` by their bits.

    On the CPU in one pass; on a device without a synchronization, whatever the values are.

    Args:
        values: torch tensor of any shape (also empty) and real floating dtype, strided. float64
            and float16 are read as float32: what float32 cannot hold counts as infinite or zero.

    Returns:
        int64, shape (`BUCKETS`,), on the device of `values`.
    """
    import torch

    flat = values.detach().reshape(-1)
    if flat.dtype not in (torch.float32, torch.bfloat16):
        flat = flat.float()
    count = _count_on_cpu if flat.device.type == "cpu" else _count_on_device
    counts = torch.zeros(BUCKETS, dtype=torch.int64, device=flat.device)
    for chunk in flat.split(_CHUNK):
        if chunk.numel():
            count(chunk, counts)
    return counts


def _keys(flat: Any) -> Any:
    import torch

    if flat.dtype == torch.bfloat16:
        return (flat.view(torch.int16) >> _BFLOAT16_SHIFT) & (_KEYS - 1)
    return (flat.view(torch.int32) >> _FLOAT32_SHIFT) & (_KEYS - 1)


def _count_on_cpu(flat: Any, counts: Any) -> None:
    import torch

    found = torch.bincount(_keys(flat), minlength=_KEYS)
    # Zeros share their key with the smallest denormals, and are looked for when there are any.
    if found[0] or found[_KEYS // 2]:
        negative = flat.signbit() & (flat == 0)
        minus = negative.sum()
        zeros = flat.numel() - torch.count_nonzero(flat)
        found[0] -= zeros - minus
        found[_KEYS // 2] -= minus
        counts[ZEROS] += zeros
    counts[:_KEYS] += found


def _count_on_device(flat: Any, counts: Any) -> None:
    """By `scatter_add_` into integers: `bincount` would read its maximum back."""
    import torch

    keys = torch.where(flat == 0, ZEROS, _keys(flat).to(torch.int64))
    counts.scatter_add_(0, keys, torch.ones_like(keys))

"""The histograms of `float_bits` for all parameters in one launch a dtype, as a Triton kernel.

Each program counts a piece of one tensor in registers, and adds what it found to that tensor's row:
memory is read once. The tensors are given as a table of their addresses, copied from pinned memory
without waiting. The torch path of `float_bits` is the reference, and what is used without Triton.
"""

# Triton has no types, and a kernel is no Python: its arguments are traced.
# mypy: ignore-errors
# pyright: basic, reportMissingImports=false, reportIndexIssue=false

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Final

import torch
import triton
import triton.language as tl

from .float_bits import BUCKETS

_BLOCK: Final = 2048
"""Elements that are counted at a time."""

_BLOCKS_A_PIECE: Final = 32
"""Blocks of one program: the 4,096 counts that it adds at its end should be few beside them."""

_PIECE: Final = _BLOCK * _BLOCKS_A_PIECE

KEYS: Final = tl.constexpr(4096)


@triton.jit
def _count(
    addresses,
    sizes,
    owners,
    starts,
    counts,
    row_stride,
    half: tl.constexpr,
    block: tl.constexpr,
    blocks: tl.constexpr,
    keys_count: tl.constexpr,
):
    piece = tl.program_id(0)
    owner = tl.load(owners + piece)
    start = tl.load(starts + piece)
    size = tl.load(sizes + owner)
    address = tl.load(addresses + owner)
    found = tl.zeros((keys_count,), tl.int32)
    zeros = 0
    for number in range(blocks):
        at = start + number * block + tl.arange(0, block)
        inside = at < size
        if half:
            data = address.to(tl.pointer_type(tl.int16))
            bits = tl.load(data + at, mask=inside, other=0).to(tl.int32) & 0xFFFF
            keys = bits >> 4
            zero = (bits & 0x7FFF) == 0
        else:
            data = address.to(tl.pointer_type(tl.int32))
            bits = tl.load(data + at, mask=inside, other=0)
            keys = (bits >> 20) & 0xFFF
            zero = (bits & 0x7FFFFFFF) == 0
        found += tl.histogram(keys, keys_count, mask=inside & (zero == 0))
        zeros += tl.sum((inside & zero).to(tl.int32), axis=0)
    row = counts + owner * row_stride
    keys_at = tl.arange(0, keys_count)
    tl.atomic_add(row + keys_at, found, mask=found > 0, sem="relaxed")
    tl.atomic_add(row + keys_count, zeros, sem="relaxed")


def histograms(tensors: Sequence[Any]) -> Any:
    """Counts of the elements of each tensor by their bits; no synchronization.

    Args:
        tensors: P contiguous ones of float32 or bfloat16, on one CUDA device, none empty, each
            of fewer than 2**31 elements.

    Returns:
        int32, shape (P, `BUCKETS`), on that device.
    """
    device = tensors[0].device
    # Triton launches on the current device, whatever the tensors are on.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return _launched(tensors, device)


def _launched(tensors: Sequence[Any], device: Any) -> Any:
    counts = torch.zeros((len(tensors), BUCKETS), dtype=torch.int32, device=device)
    for dtype in {tensor.dtype for tensor in tensors}:
        table = [(at, t.numel()) for at, t in enumerate(tensors) if t.dtype == dtype]
        pieces = [(at, start) for at, size in table for start in range(0, size, _PIECE)]
        owners, starts = zip(*pieces, strict=True)
        _count[(len(pieces),)](
            _there([t.data_ptr() for t in tensors], device),
            _there([t.numel() for t in tensors], device),
            _there(owners, device),
            _there(starts, device),
            counts,
            counts.stride(0),
            half=dtype == torch.bfloat16,
            block=_BLOCK,
            blocks=_BLOCKS_A_PIECE,
            keys_count=KEYS,
        )
    return counts


def _there(numbers: Sequence[int], device: Any) -> Any:
    """int64s on the device, by a copy that does not wait: from pinned memory, kept until done."""
    here = torch.tensor(numbers, dtype=torch.int64)
    if device.type == "cuda":
        here = here.pin_memory()
    return here.to(device, non_blocking=True)

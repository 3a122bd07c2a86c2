"""Histograms, norms and largest magnitudes of many tensors, made where the tensors are.

On the CPU the histograms are kept by their full buckets alone, some hundreds of each parameter's
4,097. On a device that would have to be read back, so they travel whole. Where tensors are on
several devices, each device does its part, and the small results are brought together on one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .float_bits import histogram, histogram_on_cpu
from .values import dtype_name

TRITON_VARIABLE: Final = "SIDESTEP_TRITON"
"""Set to 1, the histograms on CUDA are made by a Triton kernel, in one pass over memory. Not by
default before it was seen on a GPU: it reads memory by addresses."""

_INT32_COUNTS: Final = 1 << 31
"""Elements of a tensor from which on one bucket could hold more than an int32."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What is known of P tensors.

    Attributes:
        order: which of the given tensors each row is of.
        counts: one array (P, 4097); or three: full buckets of each tensor (P,), then of all
            tensors one after the other the keys of the full buckets (M,) and their counts (M,).
        numbers: L2 norms, largest magnitudes, and what `extra` gave: each float32, (P,).
    """

    order: Sequence[int]
    counts: Sequence[Any]
    numbers: Sequence[Any]


def counted(
    tensors: Sequence[Any], extra: Callable[[Sequence[int]], Sequence[Any]] | None = None
) -> Counted:
    """Count all elements of all tensors; no call synchronizes with a device.

    Args:
        tensors: P of them, at least one, none empty; strided, of real floating dtype.
        extra: given positions of tensors on one device, further numbers (len(positions),) of each,
            on that device.
    """
    import torch

    places: dict[Any, list[int]] = {}
    for at, tensor in enumerate(tensors):
        places.setdefault(tensor.device, []).append(at)
    order = [at for positions in places.values() for at in positions]
    wide = any(tensor.numel() >= _INT32_COUNTS for tensor in tensors)
    whole = any(device.type != "cpu" for device in places)
    dtype = torch.int64 if wide else torch.int32
    counts: list[Any] = []
    numbers: list[Sequence[Any]] = []
    for device, positions in places.items():
        here = [tensors[at] for at in positions]
        rows, norms, largest = _on_cpu(here) if device.type == "cpu" else _on_device(here, dtype)
        counts.append(rows)
        further = extra(positions) if extra is not None else ()
        numbers.append([norms, largest, *further])
    joined = [_joined(column, list(places)) for column in zip(*numbers, strict=True)]
    if not whole:  # then there is but one place
        return Counted(order, _full_buckets(counts[0]), joined)
    dense = [torch.stack(rows).to(dtype) if type(rows) is list else rows for rows in counts]
    return Counted(order, [_joined(dense, list(places))], joined)


def _on_cpu(tensors: Sequence[Any]) -> tuple[Any, Any, Any]:
    """A list of counts, L2 norms (P,) and largest magnitudes (P,)."""
    import torch

    found = [histogram_on_cpu(tensor) for tensor in tensors]
    norms, largest = [one.norm for one in found], [one.largest for one in found]
    return (
        [torch.from_numpy(one.counts) for one in found],
        torch.tensor(norms, dtype=torch.float32),
        torch.tensor(largest, dtype=torch.float32),
    )


def _on_device(tensors: Sequence[Any], dtype: Any) -> tuple[Any, Any, Any]:
    """The same; the counts are one tensor already where a kernel made them."""
    import torch

    if dtype == torch.int32 and _for_kernel(tensors):
        from .float_bits_triton import histograms

        rows: Any = histograms([tensor.contiguous() for tensor in tensors])
    else:
        rows = [histogram(tensor) for tensor in tensors]
    return rows, _norms(tensors, 2), _norms(tensors, float("inf"))


def _for_kernel(tensors: Sequence[Any]) -> bool:
    return os.environ.get(TRITON_VARIABLE) == "1" and all(
        tensor.is_cuda and dtype_name(tensor) in ("float32", "bfloat16") for tensor in tensors
    )


def _norms(tensors: Sequence[Any], order: float) -> Any:
    """Float32, (P,): a few launches for all of them."""
    import torch as torch_

    torch: Any = torch_  # the foreach functions are public in all but their names
    # There is no arithmetic in eight bits, and torch refuses to narrow from 64.
    tensors = [t if t.element_size() >= 2 else t.float() for t in tensors]
    double = any(t.dtype == torch.float64 for t in tensors)
    dtype = torch.float64 if double else torch.float32
    return torch.stack(torch._foreach_norm(tensors, order, dtype=dtype)).float()


def _joined(parts: Sequence[Any], places: Sequence[Any]) -> Any:
    """The parts of all devices on one: never from a device to the CPU, which would wait."""
    import torch

    if len(parts) == 1:
        return parts[0]
    there = next(place for place in places if place.type != "cpu")
    return torch.cat([part.to(there, non_blocking=True) for part in parts])


def _full_buckets(rows: Sequence[Any]) -> list[Any]:
    """The three arrays of `Counted.counts` of rows on the CPU, in numpy."""
    import numpy as np

    arrays = [row.numpy() for row in rows]
    keys = [np.flatnonzero(row) for row in arrays]
    counts = np.concatenate([row[full] for row, full in zip(arrays, keys, strict=True)])
    return [
        np.array([len(full) for full in keys], np.int32),
        np.concatenate(keys).astype(np.uint16),
        counts if counts.max() >= _INT32_COUNTS else counts.astype(np.int32),
    ]

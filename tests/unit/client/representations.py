"""What a representation's arrays ought to hold, in float64 and by numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sidestep.client import Representation
from sidestep.client.statistics import Plan, drawn_positions, moments, seed_of
from sidestep.client.values import EmitContext, Prepared

Floats = np.ndarray[Any, np.dtype[np.float64]]

SCALARS = [
    *["n", "nonfinite", "norm_mean", "norm_m2", "n_unit", "n_images", "trace", "square"],
    *["ss_image", "ss_position", "ss_total"],
    *["cosines", "distances", "target_m2", "n_pairs", "loss"],
]


@dataclass(frozen=True)
class Emitted:
    """What one observation made: by name, in float64."""

    info: dict[str, Any]
    arrays: dict[str, Floats]

    def __getitem__(self, name: str) -> Any:
        return self.arrays[name]


def prepare(x: Any, *, memory: dict[str, Any] | None = None, step: int = 0, **options: Any) -> Any:
    context = EmitContext(step, {} if memory is None else memory)
    return Representation(x, **options).prepare(context)


def emitted(x: Any, **options: Any) -> Emitted:
    """The first observation of `x`, so that everything is due."""
    prepared: Prepared = prepare(x, **options)
    assert prepared.computation is not None
    arrays = prepared.computation.at_once(prepared.arrays)
    assert all(array.dtype is torch.float32 for array in arrays)
    assert not any(array.requires_grad for array in arrays)
    assert sum(4 * array.numel() for array in arrays) == prepared.computation.result_bytes
    return named(dict(prepared.info), arrays)


def named(info: dict[str, Any], arrays: Any) -> Emitted:
    names = ["scalars", "mean", "m2", "unit_sum", "unit_m2"]
    names += ["target_mean"] if info["paired"] else []
    if info["due"]:
        names += ["gram"]
        names += ["image_mean", "image_gram"] if info["tokens"] > 1 else []
        names += ["position_means"] if info["shares"] else []
        names += ["between", "within"] if "lidar" in info["extras"] else []
    hosts = [array.double().numpy() for array in arrays]
    found = dict(zip(names, hosts, strict=True))
    scalars = found.pop("scalars")
    found |= dict(zip([*SCALARS, *info["extras"]], scalars, strict=True))
    return Emitted(info, found)


def core(x: torch.Tensor, *, due: bool = True, step: int = 0) -> Any:
    """`moments` of (B, N, D) as the value calls it."""
    tokens = None
    if x.shape[1] > 1:
        positions = drawn_positions(x.shape[0], x.shape[1], seed_of(step), x.device)
        tokens = x[torch.arange(x.shape[0]), positions]
    return moments(x, tokens, plan=Plan(due, seed_of(step)))


def reference(x: Floats, y: Floats | None = None, *, step: int = 0) -> dict[str, Any]:
    """The same of (B, D) or (B, N, D), written down from the definitions."""
    grid = x if x.ndim == 3 else x[:, None]
    b, n, d = grid.shape
    rows = grid.reshape(-1, d)
    finite = np.isfinite(rows).all(1)
    found: dict[str, Any] = {"n": finite.sum(), "nonfinite": (~np.isfinite(rows)).sum()}
    ok = rows[finite]
    found |= {"mean": ok.mean(0), "gram": scatter(ok), "m2": np.diag(scatter(ok))}
    norms = np.linalg.norm(ok, axis=1)
    found |= {"norm_mean": norms.mean(), "norm_m2": norms.var() * len(norms)}
    units = ok[norms > 0] / norms[norms > 0, None]
    found |= {"n_unit": len(units), "unit_sum": units.sum(0), "unit_m2": np.diag(scatter(units))}
    positions = drawn_positions(b, n, seed_of(step), "cpu").numpy()
    tokens = grid[np.arange(b), positions]
    tokens = tokens[np.isfinite(tokens).all(1)]
    found |= {"n_images": len(tokens), "trace": np.trace(scatter(tokens))}
    found |= {"square": (scatter(tokens) ** 2).sum()}
    if n > 1:
        found |= {"image_mean": tokens.mean(0), "image_gram": scatter(tokens)}
    if n > 1 and b > 1:
        whole = grid[finite.reshape(b, n).all(1)]
        mean = whole.mean((0, 1))
        found["ss_image"] = n * ((whole.mean(1) - mean) ** 2).sum()
        found["ss_position"] = len(whole) * ((whole.mean(0) - mean) ** 2).sum()
        found["ss_total"] = ((whole - mean) ** 2).sum()
        found["position_means"] = whole.mean(0)
    if y is not None:
        others = y.reshape(-1, d)
        both = finite & np.isfinite(others).all(1)
        left, right = rows[both], others[both]
        found["n_pairs"] = both.sum()
        lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        products = (left * right).sum(1)
        found["cosines"] = (products[lengths > 0] / lengths[lengths > 0]).sum()
        found["distances"] = ((left - right) ** 2).sum()
        found |= {"target_mean": right.mean(0), "target_m2": np.trace(scatter(right))}
    return found


def scatter(rows: Floats) -> Floats:
    """Centred Gram matrix (d, d)."""
    centred = rows - rows.mean(0)
    return centred.T @ centred


def check(found: Emitted, expected: dict[str, Any], *, rtol: float = 2e-5) -> None:
    """See that all is there, to `rtol` of each array's largest element; what is not is NaN."""
    assert {name for name in found.arrays if not np.isnan(found[name]).any()} == set(expected)
    spread = np.sqrt(expected["m2"] / max(1, expected["n"] - 1)).max()
    for name, value in expected.items():
        # A mean is as true as float32 can hold it beside its size, or as the spread asks for.
        about = spread * rtol if name.endswith(("mean", "means")) else 0.0
        atol = about + (rtol if "mean" not in name else 1.2e-7) * np.abs(value).max(initial=0)
        np.testing.assert_allclose(found[name], value, rtol=0, atol=atol + 1e-30, err_msg=name)


def pr(trace: float, square: float, n: int) -> float:
    """Participation ratio, debiased (Srivastava 2005), as the daemon computes it."""
    m = n - 1
    total, squares = trace / m, square / m**2
    return float(total**2 / (m * m / ((m - 1) * (m + 2)) * (squares - total**2 / m)))

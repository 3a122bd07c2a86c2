"""Meshes as W&B shows them: clouds of points, or with faces the text of an ``.obj`` file."""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sidestep.proto import Value

from ..rendering.meshes import mesh_of

_MAX_MESHES: Final = 32
"""Of one batch: each is a file."""

_MAX_POINTS: Final = 300_000
"""Of one cloud: W&B shows no more."""


def mesh(value: Value) -> object:
    """One object for each of the first 32 meshes; of points, only those that are finite."""
    shown = mesh_of(value)
    objects: list[object] = []
    for number in range(min(len(shown.vertices), _MAX_MESHES)):
        vertices = shown.vertices[number].astype(np.float64)
        colors = None if shown.colors is None else _bytes(shown.colors[number])
        if shown.faces is None:
            objects.append(_cloud(vertices, colors))
        else:
            objects.append(_solid(vertices, colors, shown.faces[number % len(shown.faces)]))
    return objects


def _cloud(vertices: npt.NDArray[np.float64], colors: npt.NDArray[Any] | None) -> object:
    import wandb

    rows = vertices if colors is None else np.concatenate([vertices, colors], axis=1)
    rows = rows[np.isfinite(vertices).all(axis=1)]
    if not len(rows):
        raise ValueError("a cloud of points needs a finite one")
    if len(rows) > _MAX_POINTS:
        rows = rows[np.linspace(0, len(rows) - 1, _MAX_POINTS).astype(np.intp)]
    return wandb.Object3D(rows)


def _solid(
    vertices: npt.NDArray[np.float64], colors: npt.NDArray[Any] | None, faces: npt.NDArray[Any]
) -> object:
    import wandb

    if faces.dtype.kind not in "iu" or faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"the faces of a mesh are numbers of its {len(vertices)} vertices")
    # The other faces still say where the number of a vertex leads.
    finite = np.nan_to_num(vertices, nan=0.0, posinf=0.0, neginf=0.0)
    rows = finite if colors is None else np.concatenate([finite, colors / 255], axis=1)
    lines = [f"v {' '.join(map(repr, row))}" for row in rows.tolist()]
    # Counted from 1.
    lines += [f"f {a} {b} {c}" for a, b, c in (faces.astype(np.int64) + 1).tolist()]
    return wandb.Object3D(io.StringIO("\n".join(lines) + "\n"), file_type="obj")


def _bytes(colors: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Colours from 0 to 255: floats are shares of that."""
    scale = 255 if colors.dtype.kind == "f" else 1
    return np.nan_to_num(colors.astype(np.float64) * scale).clip(0, 255)

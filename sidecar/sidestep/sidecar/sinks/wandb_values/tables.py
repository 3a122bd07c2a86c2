"""Curves and embeddings as W&B's tables, which its pages draw as the user asks."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from sidestep.proto import Value

from ..rendering.arrays import numpy_of
from ..rendering.pr_curves import curve_of

_MAX_ROWS: Final = 10_000
"""W&B shows no more of a table that is a file."""

_MAX_CELLS: Final = 300_000
"""A table of so many has some 6 MB, and takes a second."""


def pr_curve(value: Value) -> object:
    """A row for each threshold."""
    import wandb

    _, (tp, fp, tn, fn, precision, recall) = curve_of(value)
    thresholds = np.linspace(0.0, 1.0, len(tp))
    columns = (thresholds, precision, recall, tp, fp, tn, fn)
    return wandb.Table(
        columns=["threshold", "precision", "recall", "tp", "fp", "tn", "fn"],
        data=np.stack(columns, axis=1).tolist(),
    )


def embedding(value: Value) -> object:
    """A row for each point: its metadata, then its coordinates; evenly some of too many.

    The pictures of the points are left out: in a table each would be a file of its own.
    """
    import wandb

    matrix = numpy_of(value.arrays[0])
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"an embedding has the shape (n, d), not {matrix.shape}")
    count = min(len(matrix), _MAX_ROWS, max(1, _MAX_CELLS // matrix.shape[1]))
    chosen = np.linspace(0, len(matrix) - 1, count).astype(np.intp)
    points = matrix[chosen].astype(np.float64).tolist()
    header, labels = _metadata(value, len(matrix))
    if labels:
        points = [labels[row] + point for row, point in zip(chosen.tolist(), points, strict=True)]
    names: list[str | int] = [*header, *(f"d{i}" for i in range(matrix.shape[1]))]
    if len(set(names)) != len(names):  # columns of the user's own that are called so
        names = [f"{name} ({i})" for i, name in enumerate(names)]
    table = wandb.Table(columns=names, data=points[:1])
    # W&B would look at each cell for 25 µs to find that it is of the first one's type.
    table.data = points
    return table


def _metadata(value: Value, count: int) -> tuple[list[str], list[list[Any]]]:
    """Names of the columns and cells of each row; nothing when there are none."""
    if not value.info.get("metadata"):
        return [], []
    text = numpy_of(value.arrays[1]).tobytes().decode("utf-8", "replace")
    lines = text.removesuffix("\n").split("\n")
    if not value.info.get("header"):
        rows, header = [[line] for line in lines], ["label"]
    else:
        (header, *rows) = (line.split("\t") for line in lines)
    if len(rows) != count or any(len(row) != len(header) for row in rows):
        raise ValueError(f"{len(rows)} rows of metadata for {count} points")
    return header, [list(row) for row in rows]

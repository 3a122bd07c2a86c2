"""Embeddings for TensorBoard's projector: points, their labels and their pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from .arrays import as_array, dtype_name, is_tensor, on_device
from .base import EmitContext, InvalidValueError, Prepared, Value

_MAX_ROWS: Final = 1_000_000
_MAX_NUMBERS: Final = 10_000_000
"""As text they have 200 MB, and the projector in a browser gives up long before that."""

_MAX_SPRITE_PIXELS: Final = 8192
"""A side of all pictures together: more is no texture for a browser."""

_LINE_ENDS: Final = str.maketrans("\r\n", "  ")


class Embedding(Value):
    """Points of a space of many dimensions, which TensorBoard's projector shows in two or three.

    Args:
        matrix: (n, d), any real dtype: n points, at most 1,000,000, and n·d at most 10,000,000.
        metadata: what each point is, in the order of the rows: n labels, each shown by its `str`;
            or, with a header, n rows. A tensor must be on the CPU. A line's end becomes a space.
        label_images: (n, C, H, W) with 1 or 3 channels, uint8 in [0, 255] or floats in [0, 1]; all
            of them in a square have at most 8,192 pixels a side.
        metadata_header: names of the columns of `metadata`.

    Raises:
        InvalidValueError: when emitted, for another shape or dtype, a length that is not n, or more
            than the limits above.
    """

    kind = "embedding"

    def __init__(
        self,
        matrix: Any,
        *,
        metadata: Iterable[Any] | None = None,
        label_images: Any = None,
        metadata_header: Sequence[str] | None = None,
    ) -> None:
        self._matrix = matrix
        self._metadata = metadata
        self._images = label_images
        self._header = metadata_header

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        matrix = as_array(self._matrix, "Embedding")
        shape = tuple(int(n) for n in matrix.shape)
        if len(shape) != 2 or 0 in shape:
            raise InvalidValueError(f"Embedding of shape {shape}: expected a non-empty (n, d)")
        if shape[0] > _MAX_ROWS or math.prod(shape) > _MAX_NUMBERS:
            raise InvalidValueError(
                f"Embedding of shape {shape}: at most {_MAX_ROWS:,} points and {_MAX_NUMBERS:,} "
                "numbers; emit some of the rows, such as matrix[::10]"
            )
        arrays = [matrix]
        header = None
        if self._metadata is not None:
            header = None if not self._header else [_cell(name) for name in self._header]
            arrays.append(_bytes(_table(self._metadata, header, shape[0])))
        if self._images is not None:
            arrays.append(_pictures(self._images, shape[0]))
        info: dict[str, object] = {
            "header": header,
            "metadata": self._metadata is not None,
            "sprite": self._images is not None,
        }
        return Prepared(self.kind, info, arrays)


def _table(metadata: Any, header: list[str] | None, count: int) -> str:
    """One line for each point, and before them the header."""
    if on_device(metadata):
        raise InvalidValueError("Embedding metadata on a device: call .tolist() or .cpu() first")
    if isinstance(metadata, (str, bytes)) or not isinstance(metadata, Iterable):
        raise InvalidValueError(
            f"Embedding metadata must be a list of labels, not {type(metadata).__name__}"
        )
    # Elements of a tensor would be shown as "tensor(3)".
    labels: Any = metadata
    rows: list[Any] = labels.tolist() if is_tensor(labels) else list(labels)
    if len(rows) != count:
        raise InvalidValueError(
            f"Embedding of {count} points with {len(rows)} rows of metadata: expected one for each"
        )
    if header is None:
        return "\n".join(map(_cell, rows)) + "\n"
    lines = ["\t".join(header)]
    for row in rows:
        cells = [row] if isinstance(row, str) else list(row)
        if len(cells) != len(header):
            raise InvalidValueError(
                f"Embedding metadata with {len(cells)} cells in a row, {len(header)} in the header"
            )
        lines.append("\t".join(map(_cell, cells)))
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    return str(value).translate(_LINE_ENDS)


def _bytes(text: str) -> Any:
    import numpy as np

    return np.frombuffer(text.encode("utf-8", "replace"), np.uint8)


def _pictures(images: Any, count: int) -> Any:
    pictures = as_array(images, "Embedding label_images")
    shape = tuple(int(n) for n in pictures.shape)
    dtype = dtype_name(pictures)
    if dtype != "uint8" and not dtype.startswith(("float", "bfloat")):
        raise InvalidValueError(
            f"Embedding label_images of {dtype}: expected uint8 in [0, 255] or floats in [0, 1]"
        )
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape or shape[0] != count:
        raise InvalidValueError(
            f"Embedding label_images of shape {shape} for {count} points: expected "
            f"({count}, C, H, W) with 1 or 3 channels"
        )
    columns = math.isqrt(count - 1) + 1
    side = max(columns * shape[3], -(-count // columns) * shape[2])
    if side > _MAX_SPRITE_PIXELS:
        raise InvalidValueError(
            f"Embedding label_images of shape {shape} make a square of {side:,} pixels a side: at "
            f"most {_MAX_SPRITE_PIXELS:,}; make them smaller"
        )
    return pictures

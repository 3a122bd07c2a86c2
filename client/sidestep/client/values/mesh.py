"""Meshes and clouds of points."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from .arrays import as_array, dtype_name
from .base import EmitContext, InvalidValueError, Prepared, Value

_MAX_CONFIG_BYTES: Final = 64 << 10


class Mesh(Value):
    """Points in space, with colours and triangles if they have any.

    Args:
        vertices: (B, N, 3) or, for one mesh, (N, 3); any real dtype. B meshes are shown one by one.
        colors: as many rows as `vertices`, RGB: integers in [0, 255] or floats in [0, 1].
        faces: (B, M, 3) or (M, 3), integers: the vertices of each triangle, from 0 on.
        config: settings of three.js by class (``camera``, ``material``, ...) for TensorBoard.

    Raises:
        InvalidValueError: when emitted, for another shape or dtype, or a `config` that is no JSON
            of at most 64 KiB.
    """

    kind = "mesh"

    def __init__(
        self,
        vertices: Any,
        *,
        colors: Any = None,
        faces: Any = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._vertices = vertices
        self._colors = colors
        self._faces = faces
        self._config = config

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        vertices = _triples(self._vertices, "vertices")
        arrays = [vertices]
        if self._colors is not None:
            colors = _triples(self._colors, "colors")
            if _shape(colors) != _shape(vertices):
                raise InvalidValueError(
                    f"Mesh colors of shape {_shape(colors)} for vertices of shape "
                    f"{_shape(vertices)}: expected one colour for each vertex"
                )
            arrays.append(colors)
        if self._faces is not None:
            faces = _triples(self._faces, "faces")
            if not dtype_name(faces).startswith(("int", "uint")):
                raise InvalidValueError(
                    f"Mesh faces of {dtype_name(faces)}: expected integers, the vertices' numbers"
                )
            if _shape(faces)[0] != _shape(vertices)[0]:
                raise InvalidValueError(
                    f"Mesh faces for {_shape(faces)[0]} meshes, vertices of {_shape(vertices)[0]}"
                )
            arrays.append(faces)
        info: dict[str, object] = {
            "colors": self._colors is not None,
            "faces": self._faces is not None,
            "config": _json(self._config),
        }
        return Prepared(self.kind, info, arrays)


def _triples(value: Any, what: str) -> Any:
    """`value` as (B, N, 3)."""
    array = as_array(value, f"Mesh {what}")
    shape = _shape(array)
    if len(shape) == 2:
        array, shape = array[None], (1, *shape)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise InvalidValueError(
            f"Mesh {what} of shape {_shape(array)}: expected a non-empty (B, N, 3) or (N, 3)"
        )
    return array


def _shape(array: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in array.shape)


def _json(config: Any) -> str:
    if config is None:
        return "{}"
    if not isinstance(config, Mapping):
        raise InvalidValueError(f"Mesh config must be a mapping, not {type(config).__name__}")
    try:
        text = json.dumps(config, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValueError(f"Mesh config cannot be said in JSON: {error}") from None
    if len(text) > _MAX_CONFIG_BYTES:
        raise InvalidValueError(f"Mesh config of {len(text)} bytes: at most {_MAX_CONFIG_BYTES}")
    return text

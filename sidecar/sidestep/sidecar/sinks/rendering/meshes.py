"""The arrays of a mesh, told apart and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sidestep.proto import Value

from .arrays import numpy_of

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Mesh:
    """A batch of meshes.

    Attributes:
        vertices: (B, N, 3).
        colors: (B, N, 3), or None.
        faces: (B, M, 3), or None.
        config: JSON.
    """

    vertices: npt.NDArray[Any]
    colors: npt.NDArray[Any] | None
    faces: npt.NDArray[Any] | None
    config: str


def mesh_of(value: Value) -> Mesh:
    """The mesh that `value` is.

    Raises:
        ValueError: it is none.
    """
    arrays = [numpy_of(array) for array in value.arrays]
    has_colors, has_faces = bool(value.info.get("colors")), bool(value.info.get("faces"))
    if len(arrays) != 1 + has_colors + has_faces:
        raise ValueError(f"a mesh with {len(arrays)} arrays")
    for array in arrays:
        if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
            raise ValueError(f"a mesh is made of arrays (B, N, 3), not {array.shape}")
    colors = arrays[1] if has_colors else None
    faces = arrays[-1] if has_faces else None
    config = value.info.get("config")
    return Mesh(arrays[0], colors, faces, config if isinstance(config, str) else "{}")

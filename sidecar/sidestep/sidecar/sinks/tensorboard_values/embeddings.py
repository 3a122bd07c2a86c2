"""Embeddings as TensorBoard's projector reads them: files beside the events, and none in them.

``STEP/TAG/tensors.tsv``, ``metadata.tsv`` and ``sprite.png`` below the run's folder, and in it
``projector_config.pbtxt``, which names them all. An embedding that is there already, under the same
step and tag, takes its own place in it; so it may be written once more after a crash.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sidestep.proto import Value

from ..rendering.arrays import numpy_of
from .rendered import Rendered, SideFile

CONFIG: Final = "projector_config.pbtxt"

_ROWS_AT_A_TIME: Final = 1024
_MAX_NAME_BYTES: Final = 240  # of the 255 that a file's name may have
_MAX_SPRITE_PIXELS: Final = 8192
_ENCODED: Final = {"%": "%25", "/": "%2f", "\\": "%5c", "\0": "%00"}


def embedding(value: Value) -> Rendered:
    """The files of an embedding, the one that names them last."""
    arrays = [numpy_of(array) for array in value.arrays]
    has_metadata, has_sprite = bool(value.info.get("metadata")), bool(value.info.get("sprite"))
    if len(arrays) != 1 + has_metadata + has_sprite or arrays[0].ndim != 2:
        raise ValueError(f"an embedding of {len(arrays)} arrays")
    step = str(value.step).zfill(5)
    folder = (step, folder_of(value.tag))
    matrix = arrays[0]
    files = []
    if has_metadata:
        files.append(_file((*folder, "metadata.tsv"), [arrays[1].tobytes()]))
    pictures = arrays[-1] if has_sprite else None
    if pictures is not None:
        files.append(_file((*folder, "sprite.png"), [sprite(pictures)]))
    files.append(SideFile((*folder, "tensors.tsv"), lambda _: _lines(matrix)))
    name = f"{value.tag}:{step}"
    path = "/".join(folder)
    size = None if pictures is None else (int(pictures.shape[3]), int(pictures.shape[2]))
    files.append(
        SideFile((CONFIG,), lambda old: [_config(old, name, path, has_metadata, size)], reads=True)
    )
    return Rendered(files=files)


def folder_of(tag: str) -> str:
    """The folder of a tag's embeddings: torch's name for it wherever that names one folder."""
    name = "".join(_ENCODED.get(char, char) for char in tag)
    if name in (".", ".."):
        return name.replace(".", "%2e")
    data = name.encode("utf-8", "replace")
    if len(data) <= _MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(data).hexdigest()[:8]
    return f"{data[: _MAX_NAME_BYTES - 9].decode('utf-8', 'ignore')}-{digest}"


def sprite(pictures: npt.NDArray[Any]) -> bytes:
    """All pictures, shape (n, C, H, W), in the rows of a square, as PNG."""
    from PIL import Image

    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or 0 in pictures.shape:
        raise ValueError(f"pictures of an embedding have the shape (n, C, H, W): {pictures.shape}")
    count, _, height, width = pictures.shape
    columns = math.isqrt(count - 1) + 1
    side = max(columns * width, -(-count // columns) * height)
    if side > _MAX_SPRITE_PIXELS:
        raise ValueError(f"pictures that make a square of {side} pixels a side")
    canvas = np.zeros((side, columns * width, 3), np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * height, place % columns * width
        canvas[top : top + height, left : left + width] = _bytes(picture).transpose(1, 2, 0)
    png = io.BytesIO()
    Image.fromarray(canvas).save(png, format="PNG")
    return png.getvalue()


def _bytes(picture: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """One picture with bytes as torch makes them of floats; bytes stay as they are."""
    if picture.dtype == np.uint8:
        return picture
    if picture.dtype.kind != "f":
        raise ValueError(f"pictures are uint8, or floats from 0 to 1, not {picture.dtype}")
    shades = np.nan_to_num(picture.astype(np.float64), nan=0.0) * 255
    return shades.clip(0, 255).astype(np.uint8)


def _lines(matrix: npt.NDArray[Any]) -> Iterator[bytes]:
    for start in range(0, len(matrix), _ROWS_AT_A_TIME):
        rows = matrix[start : start + _ROWS_AT_A_TIME].tolist()
        yield "".join("\t".join(map(str, row)) + "\n" for row in rows).encode()


def _file(path: tuple[str, ...], pieces: Iterable[bytes]) -> SideFile:
    return SideFile(path, lambda _: pieces)


def _config(
    old: bytes | None, name: str, path: str, has_metadata: bool, size: tuple[int, int] | None
) -> bytes:
    """The projector's list with this embedding in it, once."""
    from google.protobuf import text_format
    from tensorboard.plugins.projector import projector_config_pb2

    projector: Any = projector_config_pb2  # its members are made at import
    config = projector.ProjectorConfig()
    if old:
        try:
            text_format.Parse(old.decode(), config)
        except (ValueError, text_format.ParseError) as error:
            raise ValueError(f"{CONFIG} is there and is none: {error}") from None
    same = [info for info in config.embeddings if info.tensor_name == name]
    info = same[0] if same else config.embeddings.add()
    info.Clear()
    info.tensor_name = name
    info.tensor_path = f"{path}/tensors.tsv"
    if has_metadata:
        info.metadata_path = f"{path}/metadata.tsv"
    if size is not None:
        info.sprite.image_path = f"{path}/sprite.png"
        info.sprite.single_image_dim.extend(size)
    text: str = text_format.MessageToString(config)
    return text.encode()

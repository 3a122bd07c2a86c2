"""Meshes as TensorBoard's plugin shows them: vertices, faces and colours, a summary each."""

from __future__ import annotations

from typing import Any

import numpy as np

from sidestep.proto import Value

from ..rendering.meshes import mesh_of
from .protos import TYPES, extend, set_shape


def mesh(value: Value, event: Any) -> None:
    """A batch of meshes or clouds of points."""
    from tensorboard.plugins.mesh import metadata, plugin_data_pb2

    plugin: Any = plugin_data_pb2
    kinds = plugin.MeshPluginData
    shown = mesh_of(value)
    parts = [(shown.vertices, kinds.VERTEX), (shown.faces, kinds.FACE), (shown.colors, kinds.COLOR)]
    there = [(array, kind) for array, kind in parts if array is not None]
    components = metadata.get_components_bitmask([kind for _, kind in there])
    for array, kind in there:
        summary = event.summary.value.add(tag=metadata.get_instance_name(value.tag, kind))
        summary.metadata.CopyFrom(
            metadata.create_summary_metadata(
                value.tag, None, kind, components, array.shape, json_config=shown.config
            )
        )
        summary.tensor.dtype = TYPES.DT_FLOAT
        set_shape(summary.tensor, array.shape)
        with np.errstate(all="ignore"):
            extend(summary.tensor.float_val, array.astype(np.float32))

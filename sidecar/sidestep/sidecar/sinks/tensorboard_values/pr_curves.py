"""Precision and recall as TensorBoard's plugin shows them."""

from __future__ import annotations

from typing import Any

import numpy as np

from sidestep.proto import Value

from ..rendering.pr_curves import curve_of
from .protos import TYPES, extend, set_shape


def pr_curve(value: Value, event: Any) -> None:
    """True and false positives and negatives, precision and recall, a row each."""
    from tensorboard.plugins.pr_curve import plugin_data_pb2

    plugin: Any = plugin_data_pb2
    thresholds, rows = curve_of(value)
    shown = event.summary.value.add(tag=value.tag)
    shown.metadata.plugin_data.plugin_name = "pr_curves"
    shown.metadata.plugin_data.content = plugin.PrCurvePluginData(
        version=0, num_thresholds=thresholds
    ).SerializeToString()
    shown.tensor.dtype = TYPES.DT_FLOAT
    set_shape(shown.tensor, rows.shape)
    with np.errstate(all="ignore"):
        extend(shown.tensor.float_val, rows.astype(np.float32))

"""Layouts of charts as TensorBoard's plugin reads them."""

from __future__ import annotations

from typing import Any, Final, cast

from sidestep.proto import Value

from .protos import TYPES, set_shape

_TAG: Final = "custom_scalars__config__"


def custom_scalars(value: Value, event: Any) -> None:
    """The one layout of the run."""
    from tensorboard.plugins.custom_scalar import layout_pb2

    plugin: Any = layout_pb2
    layout = plugin.Layout()
    for category, charts in cast("dict[str, dict[str, Any]]", value.info["layout"]).items():
        shown = layout.category.add(title=category)
        for title, (kind, tags) in charts.items():
            chart = shown.chart.add(title=title)
            if kind == "Margin":
                middle, lower, upper = tags
                chart.margin.series.add(value=middle, lower=lower, upper=upper)
            else:
                chart.multiline.tag.extend(tags)
    summary = event.summary.value.add(tag=_TAG)
    summary.metadata.plugin_data.plugin_name = "custom_scalars"
    summary.tensor.dtype = TYPES.DT_STRING
    set_shape(summary.tensor, ())
    summary.tensor.string_val.append(layout.SerializeToString())

"""Hyperparameters as TensorBoard's plugin shows them: an experiment of one session."""

from __future__ import annotations

from typing import Any, Final

from sidestep.proto import Value

from ..rendering.hparams import HParams, Setting, hparams_of
from .rendered import Rendered, new_event

_STARTED: Final = "_hparams_/session_start_info"
_ENDED: Final = "_hparams_/session_end_info"
_EXPERIMENT: Final = "_hparams_/experiment"


def hparams(value: Value) -> Rendered:
    """Experiment, start and end of the session, and each metric as a scalar."""
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

    api: Any = api_pb2
    plugin: Any = plugin_data_pb2
    said = hparams_of(value)
    start, experiment = plugin.SessionStartInfo(), _experiment(api, said)
    for name, setting in said.settings.items():
        _set(start.hparams[name], setting)
    end = plugin.SessionEndInfo(status=api.Status.Value("STATUS_SUCCESS"))
    contents = [
        (_EXPERIMENT, plugin.HParamsPluginData(experiment=experiment, version=0)),
        (_STARTED, plugin.HParamsPluginData(session_start_info=start, version=0)),
        (_ENDED, plugin.HParamsPluginData(session_end_info=end, version=0)),
    ]
    events = []
    for tag, content in contents:
        event = new_event(value)
        plugin_data = event.summary.value.add(tag=tag).metadata.plugin_data
        plugin_data.plugin_name = "hparams"
        # Sorted, so that the bytes are the same after a crash.
        plugin_data.content = content.SerializeToString(deterministic=True)
        events.append(event)
    for name, number in said.metrics.items():
        event = new_event(value)
        event.summary.value.add(tag=name, simple_value=number)
        events.append(event)
    return Rendered([(said.folder, bytes(event.SerializeToString())) for event in events])


def _experiment(api: Any, said: HParams) -> Any:
    experiment = api.Experiment()
    for name, setting in said.settings.items():
        # As torch does it: a bool is a number.
        kind = "DATA_TYPE_STRING" if isinstance(setting, str) else "DATA_TYPE_FLOAT64"
        info = experiment.hparam_infos.add(name=name, type=api.DataType.Value(kind))
        if name in said.domains:
            info.domain_discrete.SetInParent()
            for choice in said.domains[name]:
                _set(info.domain_discrete.values.add(), choice)
    for name in said.metrics:
        experiment.metric_infos.add().name.tag = name
    return experiment


def _set(field: Any, setting: Setting) -> None:
    if isinstance(setting, str):
        field.string_value = setting
    else:
        field.number_value = setting

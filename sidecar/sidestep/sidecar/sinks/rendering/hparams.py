"""Hyperparameters and metrics as they were emitted, checked once for whatever shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from sidestep.proto import Value

from .arrays import numpy_of

Setting = bool | int | float | str


@dataclass(frozen=True, slots=True)
class HParams:
    """What a value of kind ``hparams`` says.

    Attributes:
        settings: hyperparameters by their names, without those that are None.
        metrics: numbers by their names.
        domains: all values that a hyperparameter may have.
        folder: below the run's; "" for the run's own.
    """

    settings: Mapping[str, Setting]
    metrics: Mapping[str, float]
    domains: Mapping[str, list[Setting]]
    folder: str


def hparams_of(value: Value) -> HParams:
    """What `value` says.

    Raises:
        TypeError: something in it is of another type.
        ValueError: numbers that it promises are missing.
    """
    settings: dict[str, Setting] = {}
    for name, setting in _mapping(value.info.get("hparams")).items():
        if setting is not None:
            settings[name] = _setting(setting)
    metrics = dict(_mapping(value.info.get("metrics")))
    later: Any = value.info.get("on_device") or []
    for name, array in zip(later, value.arrays, strict=True):
        metrics[name] = numpy_of(array).reshape(()).item()
    domains = {
        name: [_setting(setting) for setting in cast("list[Any]", values)]
        for name, values in _mapping(value.info.get("domains")).items()
    }
    folder = value.info.get("folder") or ""
    if not isinstance(folder, str):
        raise TypeError(f"a folder is text, not {type(folder).__name__}")
    return HParams(settings, {k: float(v) for k, v in metrics.items()}, domains, folder)


def _mapping(value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"expected a map, not {type(value).__name__}")
    return cast("Mapping[str, Any]", value)


def _setting(value: object) -> Setting:
    if not isinstance(value, (bool, int, float, str)):
        raise TypeError(f"a hyperparameter is a number or text, not {type(value).__name__}")
    return value

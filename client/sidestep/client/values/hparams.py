"""Hyperparameters and the metrics that they led to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, cast

from sidestep.proto.limits import MAX_TAG_BYTES

from ..plain import plain_text
from ..veil import HIDDEN, is_secret
from .arrays import is_tensor, on_device, size_of
from .base import EmitContext, InvalidValueError, Prepared, Value

_MAX_ENTRIES: Final = 4096
_MAX_TEXT_BYTES: Final = 16 << 10
_MAX_INFO_BYTES: Final = 512 << 10
_MAX_ON_DEVICE: Final = 64


class HParams(Value):
    """Hyperparameters, for TensorBoard's HPARAMS page and W&B's configuration.

    Args:
        hparams: name to bool, int, float, str or None (left out); numpy scalars and tensors of one
            element on the CPU too. Numbers are finite and at most 2⁶³ in magnitude.
        metrics: name to number, what came out; each is also a scalar under its name. They may be
            tensors on a device (at most 64 of those).
        domains: name to all values that a hyperparameter may have: lists of its own type.
        folder: a folder below the run's, to compare several sets within one run, as
            `SummaryWriter.add_hparams` does; None for the run itself.

    Raises:
        InvalidValueError: when emitted, for anything else.
    """

    kind = "hparams"

    def __init__(
        self,
        hparams: Mapping[str, Any],
        metrics: Mapping[str, Any] | None = None,
        domains: Mapping[str, Any] | None = None,
        *,
        folder: str | None = None,
    ) -> None:
        self._hparams = hparams
        self._metrics = metrics
        self._domains = domains
        self._folder = folder

    def prepare(self, context: EmitContext) -> Prepared:  # noqa: D102
        hparams = {name: _setting(name, v) for name, v in _named(self._hparams, "hparams")}
        metrics: dict[str, object] = {}
        arrays: list[Any] = []
        later: list[str] = []
        for name, metric in _named(self._metrics or {}, "metrics"):
            if on_device(metric):
                _one_element(f"metric {name!r:.80}", metric)
                later.append(name)
                arrays.append(metric.detach().reshape(()))
                metrics[name] = None
            else:
                metrics[name] = _number(f"metric {name!r:.80}", metric)
        if len(arrays) > _MAX_ON_DEVICE:
            raise InvalidValueError(
                f"HParams with {len(arrays)} metrics on a device: at most {_MAX_ON_DEVICE}"
            )
        domains = {
            name: _domain(name, v, hparams) for name, v in _named(self._domains or {}, "domains")
        }
        folder = cast("object", self._folder)
        if folder is not None and not isinstance(folder, str):
            raise InvalidValueError(f"HParams folder must be a str, not {type(folder).__name__}")
        info: dict[str, object] = {
            "hparams": hparams,
            "metrics": metrics,
            "domains": domains,
            "folder": folder,
            "on_device": later,
        }
        if len(repr(info)) > _MAX_INFO_BYTES:
            raise InvalidValueError(f"HParams of more than {_MAX_INFO_BYTES} characters in all")
        return Prepared(self.kind, info, arrays)


def _named(mapping: Any, what: str) -> list[tuple[str, Any]]:
    """The entries of a mapping whose keys can be names."""
    if not isinstance(mapping, Mapping):
        raise InvalidValueError(f"HParams {what} must be a mapping, not {type(mapping).__name__}")
    entries = list(cast("Mapping[object, Any]", mapping).items())
    if len(entries) > _MAX_ENTRIES:
        raise InvalidValueError(f"HParams with {len(entries)} {what}: at most {_MAX_ENTRIES}")
    for name, _ in entries:
        if (
            not isinstance(name, str)
            or not 0 < len(name.encode("utf-8", "replace")) <= MAX_TAG_BYTES
        ):
            raise InvalidValueError(
                f"HParams {what}: a name is a str of 1 to {MAX_TAG_BYTES} bytes, not {name!r:.100}"
            )
    return [(_clean(cast("str", name)), value) for name, value in entries]


def _setting(name: str, value: Any) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if len(value.encode("utf-8", "replace")) > _MAX_TEXT_BYTES:
            raise InvalidValueError(f"HParams {name!r:.80}: a text of over {_MAX_TEXT_BYTES} bytes")
        return HIDDEN if is_secret(name, value) else plain_text(_clean(value))
    return _number(name, value, finite=True)


def _number(name: str, value: Any, *, finite: bool = False) -> bool | int | float:
    """A number as Python's own."""
    if on_device(value):
        raise InvalidValueError(f"HParams {name!r:.80} is a tensor on a device: pass .item() of it")
    if is_tensor(value) or hasattr(value, "dtype"):
        _one_element(name, value)
        value = value.item()
    if not isinstance(value, (bool, int, float)):
        raise InvalidValueError(
            f"HParams {name!r:.80} is a {type(value).__name__}: expected bool, int, float or str; "
            "pass str() of it, or its parts under names of their own"
        )
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise InvalidValueError(f"HParams {name!r:.80} does not fit into 64 bits: pass str() of it")
    if finite and not math.isfinite(value):
        raise InvalidValueError(
            f"HParams {name!r:.80} is {value}, which no page of TensorBoard shows: pass str() of it"
        )
    return value


def _one_element(name: str, value: Any) -> None:
    if size_of(value) != 1:
        raise InvalidValueError(
            f"HParams {name} of shape {tuple(value.shape)}: expected one number"
        )


def _domain(name: str, values: Any, hparams: Mapping[str, object]) -> list[object]:
    if name not in hparams or not isinstance(values, (list, tuple)):
        raise InvalidValueError(
            f"HParams domains[{name!r:.80}] must be a list of values of a hyperparameter"
        )
    own = hparams[name]
    kind: Any = (int, float) if isinstance(own, (int, float)) else type(own)
    checked = [_setting(name, v) for v in cast("list[Any]", values)]
    if len(checked) > _MAX_ENTRIES or not all(isinstance(v, kind) for v in checked):
        raise InvalidValueError(
            f"HParams domains[{name!r:.80}] must be at most {_MAX_ENTRIES} values of the type of "
            f"hparams[{name!r:.80}], {type(own).__name__}"
        )
    return checked


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()

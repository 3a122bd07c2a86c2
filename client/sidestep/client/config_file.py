"""The block `logging:` of the file that `SIDESTEP_CONFIG` names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, cast

from sidestep.proto import SidestepError

from .plain import plain_config

_BLOCKS: Final = ("logging", "sidecar")
LOGGING_KEYS: Final = (
    *("experiment_name", "log_dir", "log_frequency", "wandb", "tensorboard"),
    "keys",
)
_TENSORBOARD_KEYS: Final = ("enabled",)
_WANDB_KEYS: Final = ("enabled", "project", "entity", "tags", "mode", "id", "group", "notes")


class ConfigurationError(SidestepError, ValueError):
    """An argument of `connect`, a variable or a file that cannot be used as it is."""


@dataclass(frozen=True, slots=True)
class LoggingBlock:
    """What a file says; None where it says nothing.

    Attributes:
        experiment_name: the run's name.
        log_dir: where event files go.
        tensorboard: whether to write TensorBoard event files.
        wandb: settings of the W&B run, or None for none.
        log_frequency: steps between two looks of a trainer that asks for it.
        keys: the folder of CURVE keys, for TCP.
    """

    experiment_name: Any = None
    log_dir: Any = None
    tensorboard: bool | None = None
    wandb: dict[str, object] | None = None
    log_frequency: int | None = None
    keys: Any = None


def read(path: str | None) -> LoggingBlock:
    """What the file at `path` says about a run.

    Raises:
        ConfigurationError: it cannot be read, or holds what it should not.
    """
    if not path:
        return LoggingBlock()
    try:
        import yaml
    except ModuleNotFoundError:
        raise ConfigurationError(
            "SIDESTEP_CONFIG needs PyYAML: pip install 'sidestep[sidecar]'"
        ) from None
    try:
        with open(path, encoding="utf-8") as file:
            whole: Any = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read SIDESTEP_CONFIG {path!r}: {error}") from None
    known_keys({} if whole is None else whole, _BLOCKS, path)
    return logging_block(whole.get("logging") if whole else None, f"{path}: logging")


def logging_block(block: Any, where: str = "logging") -> LoggingBlock:
    """The same, from a mapping that was read already.

    Raises:
        ConfigurationError: a key is unknown or a value of the wrong type; says which.
    """
    if block is None:
        return LoggingBlock()
    known_keys(block, LOGGING_KEYS, where)
    given = cast("Mapping[str, Any]", block)
    return LoggingBlock(
        given.get("experiment_name"),
        given.get("log_dir"),
        _enabled(given.get("tensorboard"), _TENSORBOARD_KEYS, f"{where}.tensorboard"),
        _wandb(given.get("wandb"), f"{where}.wandb"),
        _frequency(given.get("log_frequency"), f"{where}.log_frequency"),
        given.get("keys"),
    )


def known_keys(block: Any, known: tuple[str, ...], where: str) -> None:
    """See that `block` is a mapping with no other keys.

    Raises:
        ConfigurationError: it is not; the nearest known key is named.
    """
    if not isinstance(block, Mapping):
        raise ConfigurationError(f"{where} must be a mapping of {', '.join(known)}")
    for key in block:
        if key not in known:
            near = get_close_matches(str(key), known, 1, 0.0)[0]
            raise ConfigurationError(f"{where}: unknown key {key!r}; did you mean {near!r}?")


def _frequency(steps: Any, where: str) -> int | None:
    if steps is not None and (type(steps) is not int or steps < 1):
        raise ConfigurationError(f"{where} must be a number of steps, 1 or more, not {steps!r}")
    return steps


def _enabled(block: Any, known: tuple[str, ...], where: str) -> bool | None:
    if block is None:
        return None
    known_keys(block, known, where)
    enabled: Any = cast("Mapping[str, Any]", block).get("enabled")
    if enabled is not None and not isinstance(enabled, bool):
        raise ConfigurationError(f"{where}.enabled must be true or false, not {enabled!r}")
    return enabled


def _wandb(block: Any, where: str) -> dict[str, object] | None:
    if block is None or _enabled(block, _WANDB_KEYS, where) is False:
        return None
    return {k: v for k, v in plain_config(block).items() if k != "enabled" and v is not None}

"""The arguments of `connect` as a type, for what connects in somebody's stead."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict

from sidestep import client

from .settings import Settings, resolve


class ConnectArguments(TypedDict, total=False):
    """`connect`'s arguments by keyword; see there."""

    log_dir: str | os.PathLike[str] | None
    config: Mapping[str, Any] | None
    tags: Iterable[str]
    tensorboard: bool | Mapping[str, Any] | None
    wandb: bool | Mapping[str, Any] | None
    endpoint: str | None
    autostart: bool
    rank: int | None
    world_size: int | None
    ranks: Literal["zero", "all"]
    on_full: Literal["drop", "block"]
    outbox_bytes: int
    strict: bool | None


def settled(
    run: str | None,
    arguments: ConnectArguments,
    keys: str | os.PathLike[str] | None = None,
) -> Settings:
    """What `connect` would make of these, without connecting.

    Args:
        run: the run's name.
        arguments: the rest of them.
        keys: the folder of keys that a configuration names, unless the environment names one.

    Raises:
        ConfigurationError: what `connect` would raise it for.
    """
    bound = inspect.signature(client.connect).bind(run, **arguments)
    bound.apply_defaults()
    folder = None if os.environ.get("SIDESTEP_KEYS") else keys
    return resolve(os.environ, **bound.arguments, keys=folder)

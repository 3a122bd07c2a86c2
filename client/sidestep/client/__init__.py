"""What a trainer calls: `connect`, `emit`, `flush`, `finish`, and the values that `emit` takes.

Importing this loads next to nothing; `connect` loads what it needs (zmq, never torch or numpy).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from .importing import imported

if TYPE_CHECKING:
    from sidestep.proto import Alarm, SidestepError

    from .books import Stats
    from .config_file import ConfigurationError
    from .emitter import Client, Reduce
    from .parameters import Gradients, Weights
    from .representation import Representation
    from .settings import Settings
    from .values import InvalidValueError, Value
    from .values.audio import Audio
    from .values.custom_scalars import CustomScalars
    from .values.embedding import Embedding
    from .values.figure import Figure
    from .values.graph import Graph
    from .values.histogram import Histogram
    from .values.hparams import HParams
    from .values.image import Image, Images
    from .values.masked_image import MaskedImage
    from .values.mesh import Mesh
    from .values.pr_curve import PRCurve
    from .values.text import Text
    from .values.video import Video

# Modules by the name that they are asked for here. A trainer that only imports this, and perhaps
# never connects, pays for nothing.
_HOMES = {
    "Alarm": "sidestep.proto",
    "Audio": ".values.audio",
    "Client": ".emitter",
    "ConfigurationError": ".config_file",
    "CustomScalars": ".values.custom_scalars",
    "Embedding": ".values.embedding",
    "Figure": ".values.figure",
    "Gradients": ".parameters",
    "Graph": ".values.graph",
    "HParams": ".values.hparams",
    "Histogram": ".values.histogram",
    "Image": ".values.image",
    "Images": ".values.image",
    "InvalidValueError": ".values",
    "MaskedImage": ".values.masked_image",
    "Mesh": ".values.mesh",
    "PRCurve": ".values.pr_curve",
    "Representation": ".representation",
    "SidestepError": "sidestep.proto",
    "Stats": ".books",
    "Text": ".values.text",
    "Value": ".values",
    "Video": ".values.video",
    "Weights": ".parameters",
}

_default: Client | None = None
_unconnected = 0


def connect(
    run: str | None = None,
    *,
    log_dir: str | os.PathLike[str] | None = None,
    config: Mapping[str, Any] | None = None,
    tags: Iterable[str] = (),
    tensorboard: bool | Mapping[str, Any] | None = None,
    wandb: bool | Mapping[str, Any] | None = None,
    endpoint: str | None = None,
    autostart: bool = True,
    rank: int | None = None,
    world_size: int | None = None,
    ranks: Literal["zero", "all"] = "zero",
    on_full: Literal["drop", "block"] = "drop",
    outbox_bytes: int = 64 << 20,
    strict: bool | None = None,
) -> Client:
    """Begin to log; returns within a second, with or without a daemon.

    An argument that is None or left out comes from the environment, then from the file that
    `SIDESTEP_CONFIG` names, then from the default.

    Args:
        run: the run's name; `$SIDESTEP_RUN`, else a readable generated one.
        log_dir: where event files go; `$SIDESTEP_LOG_DIR`, else ``results/logs``. It need not
            exist, and may be full or read-only: that is the daemon's trouble.
        config: hyperparameters, for W&B and the journal.
        tags: labels of the run.
        tensorboard: whether to write TensorBoard event files (default yes); or a mapping:
            ``folder`` ("." for event files in `log_dir` itself instead of
            ``LOG_DIR/tensorboard/RUN``) and ``suffix`` (what ends the files' names).
        wandb: None or False for no W&B, True, or a mapping (``project``, ``entity``, ``tags``,
            ``mode``, ``id``, ...).
        endpoint: the daemon's ZeroMQ address; `$SIDESTEP_ENDPOINT`, else the node's own.
        autostart: start a daemon, once per node and user, when there is none.
        rank: this process's rank; `$RANK`, else torch.distributed's, else 0.
        world_size: how many processes train together; `$WORLD_SIZE`, else likewise, else 1.
        ranks: ``"zero"``: of other ranks than 0 only what is reduced, and representations;
            ``"all"``: everybody's values, under ``rank_<k>/``.
        on_full: what `emit` does when the outbox is full: ``"drop"`` the oldest and count, or
            ``"block"`` for at most 60 s.
        outbox_bytes: memory for what is not durable yet, at least 256 KiB.
        strict: raise on a bad value instead of counting it; `$SIDESTEP_STRICT`.

    Returns:
        The client, which is also the one that this module's functions use from now on.

    Raises:
        ConfigurationError: an argument, a variable or the file is wrong. A missing daemon never
            raises.
    """
    from .settings import resolve

    settings = resolve(
        os.environ,
        run=run,
        log_dir=log_dir,
        config=config,
        tags=tags,
        tensorboard=tensorboard,
        wandb=wandb,
        endpoint=endpoint,
        autostart=autostart,
        rank=rank,
        world_size=world_size,
        ranks=ranks,
        on_full=on_full,
        outbox_bytes=outbox_bytes,
        strict=strict,
    )
    return _use(settings)


def _use(settings: Settings) -> Client:
    """Connect with settings that are resolved already, and be this module's client.

    For what connects in somebody's stead; everybody else calls `connect`.
    """
    global _default  # noqa: PLW0603 - the module's functions speak of one client
    from .emitter import Client

    _default = client = Client(settings)
    return client


def emit(
    values: Mapping[str, Any],
    step: int | None = None,
    *,
    wall_time: float | None = None,
    reduce: Reduce | None = None,
) -> None:
    """`Client.emit` of the client that `connect` made last."""
    if _default is None:
        _not_connected()
        return
    _default.emit(values, step, wall_time=wall_time, reduce=reduce)


def flush(timeout: float = 5.0) -> bool:
    """`Client.flush` of the client that `connect` made last; False without one."""
    return _default is not None and _default.flush(timeout)


def finish(timeout: float = 5.0) -> bool:
    """`Client.finish` of the client that `connect` made last; True without one."""
    return _default is None or _default.finish(timeout)


def stats() -> Stats:
    """`Client.stats` of the client that `connect` made last."""
    from .books import Stats

    return Stats(rejected=_unconnected) if _default is None else _default.stats()


def on_alarm(callback: Callable[[Alarm], object]) -> None:
    """`Client.on_alarm` of the client that `connect` made last.

    Raises:
        ConfigurationError: there is none yet.
    """
    if _default is None:
        from .config_file import ConfigurationError

        raise ConfigurationError("call client.connect(...) before client.on_alarm(...)")
    _default.on_alarm(callback)


def _not_connected() -> None:
    """An `emit` before `connect`: count it, say so once, and raise only when strict."""
    global _unconnected  # noqa: PLW0603 - there is no client yet that could count
    if _flag("SIDESTEP_DISABLED"):
        return
    _unconnected += 1
    sentence = "emit before connect: call client.connect(...) once, before the training loop"
    if _flag("SIDESTEP_STRICT"):
        from .values import InvalidValueError

        raise InvalidValueError(sentence)
    if _unconnected == 1:
        import logging

        logging.getLogger("sidestep").warning("sidestep: %s", sentence)


def _flag(name: str) -> bool:
    from .settings import flag

    return flag(os.environ, name)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(imported(_HOMES[name], __name__), name)
    globals()[name] = found  # asked for once
    return found


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "Alarm",
    "Audio",
    "Client",
    "ConfigurationError",
    "CustomScalars",
    "Embedding",
    "Figure",
    "Gradients",
    "Graph",
    "HParams",
    "Histogram",
    "Image",
    "Images",
    "InvalidValueError",
    "MaskedImage",
    "Mesh",
    "PRCurve",
    "Representation",
    "SidestepError",
    "Stats",
    "Text",
    "Value",
    "Video",
    "Weights",
    "connect",
    "emit",
    "finish",
    "flush",
    "on_alarm",
    "stats",
]

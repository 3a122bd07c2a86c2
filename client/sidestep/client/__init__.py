"""What a trainer calls: `connect`, `emit`, `flush`, `finish`, and the values that `emit` takes.

Importing this loads neither torch nor numpy nor zmq; `connect` does what it needs.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from sidestep.proto import Alarm, SidestepError

from .representation import Representation
from .settings import ConfigurationError, resolve
from .values import Histogram, Image, InvalidValueError, Text, Value

if TYPE_CHECKING:
    from .emitter import Client, Reduce, Stats

_logger = logging.getLogger("sidestep")
_default: Client | None = None
_unconnected = 0


def connect(
    run: str | None = None,
    *,
    log_dir: str | os.PathLike[str] | None = None,
    config: Mapping[str, Any] | None = None,
    tags: Iterable[str] = (),
    tensorboard: bool | None = None,
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
        tensorboard: whether to write TensorBoard event files (default yes).
        wandb: None or False for no W&B, True, or a mapping (``project``, ``entity``, ``tags``,
            ``mode``, ``id``, ...).
        endpoint: the daemon's ZeroMQ address; `$SIDESTEP_ENDPOINT`, else the node's own.
        autostart: start a daemon, once per node and user, when there is none.
        rank: this process's rank; `$RANK`, else 0.
        world_size: how many processes train together; `$WORLD_SIZE`, else 1.
        ranks: ``"zero"``: only rank 0's values are written; ``"all"``: everybody's, under
            ``rank_<k>/``.
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
    global _default
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
    from .emitter import Client

    client = Client(settings)
    # At exit, before the interpreter takes the sender's thread away.
    atexit.register(client.finish)
    _default = client
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
    from .emitter import Stats

    return Stats(rejected=_unconnected) if _default is None else _default.stats()


def on_alarm(callback: Callable[[Alarm], object]) -> None:
    """`Client.on_alarm` of the client that `connect` made last.

    Raises:
        ConfigurationError: there is none yet.
    """
    if _default is None:
        raise ConfigurationError("call client.connect(...) before client.on_alarm(...)")
    _default.on_alarm(callback)


def _not_connected() -> None:
    """An `emit` before `connect`: count it, say so once, and raise only when strict."""
    global _unconnected
    if os.environ.get("SIDESTEP_DISABLED", "0") not in ("", "0"):
        return
    _unconnected += 1
    sentence = "emit before connect: call client.connect(...) once, before the training loop"
    if os.environ.get("SIDESTEP_STRICT", "0") not in ("", "0"):
        raise InvalidValueError(sentence)
    if _unconnected == 1:
        _logger.warning("sidestep: %s", sentence)


def __getattr__(name: str) -> Any:
    if name in ("Client", "Stats"):
        # Loaded when asked for: it brings zmq, which importing this module must not.
        from . import emitter

        return getattr(emitter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Alarm",
    "Client",
    "ConfigurationError",
    "Histogram",
    "Image",
    "InvalidValueError",
    "Representation",
    "SidestepError",
    "Stats",
    "Text",
    "Value",
    "connect",
    "emit",
    "finish",
    "flush",
    "on_alarm",
    "stats",
]

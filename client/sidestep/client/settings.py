"""What `connect` was told, what the environment says, and what the file says, in that order."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from sidestep.proto import Hello, LocalProtocolError, RunSpec, SidestepError, encode
from sidestep.proto.limits import MAX_RANKS, MAX_SUFFIX_BYTES
from sidestep.proto.paths import (
    DEFAULT_LOG_DIR,
    MAX_SOCKET_PATH_BYTES,
    RuntimePaths,
    runtime_paths,
    state_dir,
)

from . import config_file
from .config_file import ConfigurationError, known_keys
from .keys import ClientKeys, for_endpoint
from .plain import plain_config, plain_text
from .ranks import common_name, initialised
from .veil import is_secret

_MIN_OUTBOX_BYTES: Final = 256 << 10
_MAX_OUTBOX_BYTES: Final = 1 << 40
_MAX_RUN_BYTES: Final = 1024
_MAX_PORT: Final = 65535
_TENSORBOARD_KEYS: Final = ("folder", "suffix")
_WANDB_KEYS: Final = (
    *("entity", "group", "id", "job_type", "mode"),
    *("name", "notes", "project", "tags"),
)
"""What W&B's sink understands; each means what it means to `wandb.init`."""

_ADJECTIVES: Final = (
    *("amber", "brisk", "calm", "deft", "eager", "fond"),
    *("glad", "hazel", "ivory", "jade", "keen", "lucid"),
)
_NOUNS: Final = (
    *("alder", "birch", "cedar", "dune", "ember", "fjord"),
    *("grove", "heron", "isle", "jay", "kelp", "larch"),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a client needs to know, checked.

    Attributes:
        run: what the daemon is told of the run.
        endpoint: the daemon's ZeroMQ address.
        paths: the runtime directory.
        state_dir: where the outbox goes when memory cannot hold it.
        autostart: whether to start a daemon when there is none.
        rank: this process's rank in its job.
        world_size: how many processes the job has.
        ranks: ``"zero"`` or ``"all"``: whose values are written.
        on_full: ``"drop"`` or ``"block"``.
        outbox_bytes: size of the outbox.
        strict: whether bad values raise.
        disabled: whether everything is a no-op.
        attempt: how often an elastic agent has restarted the job.
        keys: for an endpoint that is TCP; None without keys.
    """

    run: RunSpec
    endpoint: str
    paths: RuntimePaths
    state_dir: str
    autostart: bool
    rank: int
    world_size: int
    ranks: str
    on_full: str
    outbox_bytes: int
    strict: bool
    disabled: bool
    attempt: int
    keys: ClientKeys | None = None


def resolve(
    environ: Mapping[str, str],
    *,
    run: str | None,
    log_dir: str | os.PathLike[str] | None,
    config: Mapping[str, Any] | None,
    tags: Iterable[str],
    tensorboard: bool | Mapping[str, Any] | None,
    wandb: bool | Mapping[str, Any] | None,
    endpoint: str | None,
    autostart: bool,
    rank: int | None,
    world_size: int | None,
    ranks: str,
    on_full: str,
    outbox_bytes: int,
    strict: bool | None,
    keys: str | os.PathLike[str] | None = None,
) -> Settings:
    """Put argument before environment before file before default, and check everything.

    Raises:
        ConfigurationError: anything is of the wrong type or out of its range.
    """
    file = config_file.read(environ.get("SIDESTEP_CONFIG"))
    _choice("ranks", ranks, ("zero", "all"))
    _choice("on_full", on_full, ("drop", "block"))
    if not _is_int(outbox_bytes) or not _MIN_OUTBOX_BYTES <= outbox_bytes <= _MAX_OUTBOX_BYTES:
        raise ConfigurationError(
            f"outbox_bytes must be an int from {_MIN_OUTBOX_BYTES} on, not {outbox_bytes!r}"
        )
    if rank is world_size is None and not (environ.get("RANK") or environ.get("WORLD_SIZE")):
        rank, world_size = initialised() or (None, None)
    rank = _number("rank", rank, environ.get("RANK"), 0, low=0)
    world_size = _number("world_size", world_size, environ.get("WORLD_SIZE"), 1, low=1)
    if rank >= world_size:
        raise ConfigurationError(
            f"rank {rank} of a world of {world_size}: ranks begin at 0; set both rank and "
            "world_size, or both RANK and WORLD_SIZE"
        )
    if world_size > MAX_RANKS:
        raise ConfigurationError(f"world_size must be an int up to {MAX_RANKS}, not {world_size}")
    try:
        paths = runtime_paths(environ, os.getuid(), tempfile.gettempdir())
    except SidestepError as error:
        raise ConfigurationError(str(error)) from None
    common = generated_name_of(common_name(environ)) if world_size > 1 else None
    spec = RunSpec(
        _run_name(_first(run, environ.get("SIDESTEP_RUN"), file.experiment_name, common)),
        _log_dir(_first(log_dir, environ.get("SIDESTEP_LOG_DIR"), file.log_dir, DEFAULT_LOG_DIR)),
        _tensorboard(_first(tensorboard, file.tensorboard, True)),
        _wandb(wandb, file.wandb),
        _config(config),
        _tags(tags),
    )
    _check_describable(spec)
    disabled = flag(environ, "SIDESTEP_DISABLED")
    address = _endpoint(_first(endpoint, environ.get("SIDESTEP_ENDPOINT")), paths)
    folder = _first(keys, environ.get("SIDESTEP_KEYS"), file.keys)
    return Settings(
        run=spec,
        endpoint=address,
        paths=paths,
        state_dir=state_dir(environ, os.path.expanduser("~")),
        autostart=_switch("autostart", autostart) and _may_start(environ),
        rank=rank,
        world_size=world_size,
        ranks=ranks,
        on_full=on_full,
        outbox_bytes=outbox_bytes,
        strict=flag(environ, "SIDESTEP_STRICT") if strict is None else _switch("strict", strict),
        disabled=disabled,
        attempt=_number("attempt", None, environ.get("TORCHELASTIC_RESTART_COUNT"), 0, low=0),
        keys=None if disabled else for_endpoint(address, folder),
    )


def generated_name(now: float, choose: random.Random) -> str:
    """A name that a person can say, unique by its time."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    return _said(choose, stamp)


def generated_name_of(job: str | None) -> str | None:
    """The same of a job, so that all of its ranks have one run; None of none."""
    return None if job is None else _said(random.Random(job), job)  # noqa: S311 - nothing secret


def _said(choose: random.Random, stamp: str) -> str:
    return f"{choose.choice(_ADJECTIVES)}-{choose.choice(_NOUNS)}-{stamp}"


# --- one setting each -----------------------------------------------------------------------


def _first(*candidates: Any) -> Any:
    return next((c for c in candidates if c is not None and c != ""), None)


def _run_name(name: Any) -> str:
    if name is None:
        return generated_name(time.time(), random.Random())  # noqa: S311 - nothing secret
    text = _text("run", name)
    if not text.strip() or len(text.encode()) > _MAX_RUN_BYTES:
        raise ConfigurationError(f"run must be a name of 1 to {_MAX_RUN_BYTES} bytes")
    return text


def _log_dir(directory: Any) -> str:
    if isinstance(directory, os.PathLike):
        directory = os.fspath(cast("os.PathLike[str]", directory))
    text = _text("log_dir", directory)
    if "\0" in text:
        raise ConfigurationError(f"log_dir must not hold a NUL: {text!r}")
    if "://" in text:
        raise ConfigurationError(
            f"log_dir is a folder, not {text!r}: the daemon writes there, and copies what it has "
            f"written. Leave it local, and start the daemon with SIDESTEP_MIRROR={text}"
        )
    return os.path.abspath(text)


def _config(config: Any) -> dict[str, object]:
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise ConfigurationError(
            f"config must be a mapping such as vars(args), not {type(config).__name__}"
        )
    return plain_config(config)


def _text(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{what} must be a str, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{what} must be valid Unicode text: {value!r}") from None
    return value


def _tags(tags: Any) -> tuple[str, ...]:
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise ConfigurationError("tags must be a list of str")
    return tuple(plain_text(_text("a tag", tag)) for tag in tags)


def _tensorboard(tensorboard: Any) -> bool | dict[str, object]:
    if isinstance(tensorboard, bool):
        return tensorboard
    if not isinstance(tensorboard, Mapping):
        raise ConfigurationError(
            "tensorboard must be True, False or a mapping (folder, suffix), not "
            f"{type(tensorboard).__name__}"
        )
    known_keys(tensorboard, _TENSORBOARD_KEYS, "tensorboard")
    given = cast("Mapping[str, Any]", tensorboard)
    folder, suffix = given.get("folder"), given.get("suffix")
    if folder not in (None, "."):
        raise ConfigurationError(
            "tensorboard's folder is None (LOG_DIR/tensorboard/RUN) or '.' (LOG_DIR itself), not "
            f"{folder!r:.100}"
        )
    chosen: dict[str, object] = {} if folder is None else {"folder": "."}
    if suffix:
        text = _text("tensorboard's suffix", suffix)
        if "/" in text or "\0" in text or len(text.encode()) > MAX_SUFFIX_BYTES:
            raise ConfigurationError(
                f"tensorboard's suffix ends the names of event files: at most {MAX_SUFFIX_BYTES} "
                f"bytes without '/', not {text!r:.120}"
            )
        chosen["suffix"] = text
    return chosen or True


def _wandb(wandb: Any, file: dict[str, object] | None) -> dict[str, object] | None:
    if wandb is None:
        return file
    if isinstance(wandb, bool):
        return (file or {}) if wandb else None
    if isinstance(wandb, Mapping):
        for key, value in wandb.items():
            if is_secret(str(key), value):
                raise ConfigurationError(
                    f"wandb: {key!r} is a secret, which would be shown with the run. Set "
                    "WANDB_API_KEY, or run `wandb login`, where the daemon is"
                )
        known_keys(wandb, _WANDB_KEYS, "wandb")
        return {**(file or {}), **plain_config(cast("Mapping[str, Any]", wandb))}
    raise ConfigurationError(
        f"wandb must be None, True, False or a mapping (project, entity, tags, mode, id, ...), "
        f"not {type(wandb).__name__}"
    )


def _endpoint(endpoint: Any, paths: RuntimePaths) -> str:
    if endpoint is None:
        return paths.data_endpoint
    text = _text("endpoint", endpoint)
    transport, _, address = text.partition("://")
    if transport == "ipc" and 0 < len(os.fsencode(address)) <= MAX_SOCKET_PATH_BYTES:
        return text
    host, _, port = address.rpartition(":")
    if transport == "tcp" and host and port.isdecimal() and 0 < int(port) <= _MAX_PORT:
        return text
    raise ConfigurationError(
        f"endpoint must be ipc://PATH, of at most {MAX_SOCKET_PATH_BYTES} bytes, or "
        f"tcp://HOST:PORT, not {text!r}: for example {paths.data_endpoint!r}"
    )


def _check_describable(spec: RunSpec) -> None:
    """See that the daemon can be told of the run: sizes, depths and counts are limited."""
    try:
        encode(Hello(bytes(16), 0, 0, spec))
    except LocalProtocolError as error:
        raise ConfigurationError(
            f"config, tags or wandb are too much for a message: {error}"
        ) from error


def _number(what: str, given: Any, variable: str | None, default: int, *, low: int) -> int:
    value: Any = given
    if value is None and variable:
        try:
            value = int(variable)
        except ValueError:
            raise ConfigurationError(
                f"the environment's {what} must be an integer: {variable!r}"
            ) from None
    if value is None:
        return default
    if not _is_int(value) or value < low:
        raise ConfigurationError(f"{what} must be an int of {low} or more, not {value!r}")
    return int(value)


def _switch(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{what} must be True or False, not {value!r}")
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigurationError(f"{what} must be one of {', '.join(choices)}, not {value!r}")


def _may_start(environ: Mapping[str, str]) -> bool:
    """Whether the environment leaves it to clients to start a daemon: not where a service does."""
    return not environ.get("SIDESTEP_AUTOSTART") or flag(environ, "SIDESTEP_AUTOSTART")


def flag(environ: Mapping[str, str], name: str) -> bool:
    """Whether a variable is set, and not to 0, false, no or off."""
    return environ.get(name, "").strip().lower() not in ("", "0", "false", "no", "off")

"""What `connect` was told, what the environment says, and what the file says, in that order."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final, cast

from sidestep.proto import RunSpec, SidestepError
from sidestep.proto.paths import DEFAULT_LOG_DIR, RuntimePaths, runtime_paths, state_dir

_MIN_OUTBOX_BYTES: Final = 256 << 10
_MAX_OUTBOX_BYTES: Final = 1 << 40
_ADJECTIVES: Final = "amber brisk calm deft eager fond glad hazel ivory jade keen lucid".split()
_NOUNS: Final = "alder birch cedar dune ember fjord grove heron isle jay kelp larch".split()


class ConfigurationError(SidestepError, ValueError):
    """An argument of `connect`, a variable or a file that cannot be used as it is."""


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


def resolve(
    environ: Mapping[str, str],
    *,
    run: str | None,
    log_dir: str | os.PathLike[str] | None,
    config: Mapping[str, Any] | None,
    tags: Iterable[str],
    tensorboard: bool | None,
    wandb: bool | Mapping[str, Any] | None,
    endpoint: str | None,
    autostart: bool,
    rank: int | None,
    world_size: int | None,
    ranks: str,
    on_full: str,
    outbox_bytes: int,
    strict: bool | None,
) -> Settings:
    """Put argument before environment before file before default, and check everything.

    Raises:
        ConfigurationError: anything is of the wrong type or out of its range.
    """
    file = _logging_block(environ)
    file_wandb = _file_wandb(file)
    name = _first(run, environ.get("SIDESTEP_RUN"), file.get("experiment_name"))
    directory = _first(log_dir, environ.get("SIDESTEP_LOG_DIR"), file.get("log_dir"))
    if tensorboard is None:
        tensorboard = bool(cast("Mapping[str, Any]", file.get("tensorboard") or {}).get("enabled", True))
    _choice("ranks", ranks, ("zero", "all"))
    _choice("on_full", on_full, ("drop", "block"))
    if not _is_int(outbox_bytes) or not _MIN_OUTBOX_BYTES <= outbox_bytes <= _MAX_OUTBOX_BYTES:
        raise ConfigurationError(
            f"outbox_bytes must be an int from {_MIN_OUTBOX_BYTES} on, not {outbox_bytes!r}"
        )
    rank = _number("rank", rank, environ.get("RANK"), 0, low=0)
    world_size = _number("world_size", world_size, environ.get("WORLD_SIZE"), 1, low=1)
    if rank >= world_size:
        raise ConfigurationError(f"rank {rank} of a world of {world_size}: ranks begin at 0")
    paths = runtime_paths(environ, os.getuid(), tempfile.gettempdir())
    return Settings(
        run=RunSpec(
            _run_name(name),
            os.path.abspath(_text("log_dir", os.fspath(directory or DEFAULT_LOG_DIR))),
            tensorboard,
            _wandb(wandb, file_wandb),
            plain_config(config or {}),
            _tags(tags),
        ),
        endpoint=_endpoint(_first(endpoint, environ.get("SIDESTEP_ENDPOINT")), paths),
        paths=paths,
        state_dir=state_dir(environ, os.path.expanduser("~")),
        autostart=bool(autostart),
        rank=rank,
        world_size=world_size,
        ranks=ranks,
        on_full=on_full,
        outbox_bytes=outbox_bytes,
        strict=_flag(environ, "SIDESTEP_STRICT") if strict is None else bool(strict),
        disabled=_flag(environ, "SIDESTEP_DISABLED"),
        attempt=_number("attempt", None, environ.get("TORCHELASTIC_RESTART_COUNT"), 0, low=0),
    )


def plain_config(config: Mapping[str, Any]) -> dict[str, object]:
    """A configuration in MessagePack's types: what has no such type becomes its `str`.

    Raises:
        ConfigurationError: it is no mapping.
    """
    if not isinstance(cast("object", config), Mapping):
        raise ConfigurationError(
            f"config must be a mapping such as vars(args), not {type(config).__name__}"
        )
    return {str(key): _plain(value, 0) for key, value in config.items()}


def generated_name(now: float, choose: random.Random) -> str:
    """A name that a person can say, unique by its time."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    return f"{choose.choice(_ADJECTIVES)}-{choose.choice(_NOUNS)}-{stamp}"


# --- one setting each -----------------------------------------------------------------------


def _first(*candidates: Any) -> Any:
    return next((c for c in candidates if c is not None and c != ""), None)


def _run_name(name: Any) -> str:
    if name is None:
        return generated_name(time.time(), random.Random())
    text = _text("run", name)
    if not text.strip() or len(text.encode()) > 1024:
        raise ConfigurationError("run must be a name of 1 to 1024 bytes")
    return text


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
    return tuple(_text("a tag", tag) for tag in cast("Iterable[Any]", tags))


def _wandb(wandb: Any, file: dict[str, object] | None) -> dict[str, object] | None:
    if wandb is None:
        return file
    if isinstance(wandb, bool):
        return (file or {}) if wandb else None
    if isinstance(wandb, Mapping):
        return {**(file or {}), **plain_config(cast("Mapping[str, Any]", wandb))}
    raise ConfigurationError(
        f"wandb must be None, True, False or a mapping (project, entity, tags, mode, id, ...), "
        f"not {type(wandb).__name__}"
    )


def _endpoint(endpoint: Any, paths: RuntimePaths) -> str:
    if endpoint is None:
        return paths.data_endpoint
    text = _text("endpoint", endpoint)
    if not text.startswith(("ipc://", "tcp://")):
        raise ConfigurationError(
            f"endpoint must begin with ipc:// or tcp://, not {text!r}: for example "
            f"{paths.data_endpoint!r}"
        )
    return text


def _number(what: str, given: Any, variable: str | None, default: int, *, low: int) -> int:
    value: Any = given
    if value is None and variable:
        if not variable.strip().lstrip("-").isdigit():
            raise ConfigurationError(f"the environment's {what} must be an integer: {variable!r}")
        value = int(variable)
    if value is None:
        return default
    if not _is_int(value) or value < low:
        raise ConfigurationError(f"{what} must be an int of {low} or more, not {value!r}")
    return int(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigurationError(f"{what} must be one of {', '.join(choices)}, not {value!r}")


def _flag(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").strip().lower() not in ("", "0", "false", "no", "off")


def _plain(value: Any, depth: int) -> object:
    if depth > 16:
        return str(value)
    if value is None or isinstance(value, (bool, str, bytes)):
        return cast("object", value)
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 64 else str(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {str(key): _plain(item, depth + 1) for key, item in items}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, depth + 1) for item in cast("Iterable[Any]", value)]
    return str(value)


# --- the file ---------------------------------------------------------------------------------

_LOGGING_KEYS: Final = ("experiment_name", "log_dir", "log_frequency", "wandb", "tensorboard")
_WANDB_KEYS: Final = ("enabled", "project", "entity", "tags", "mode", "id", "group", "notes")


def _logging_block(environ: Mapping[str, str]) -> Mapping[str, Any]:
    """The block `logging:` of the file that `SIDESTEP_CONFIG` names."""
    path = environ.get("SIDESTEP_CONFIG")
    if not path:
        return {}
    try:
        import yaml
    except ModuleNotFoundError:
        raise ConfigurationError(
            "SIDESTEP_CONFIG needs PyYAML: pip install 'sidestep[sidecar]'"
        ) from None
    try:
        with open(path, encoding="utf-8") as file:
            whole: Any = yaml.safe_load(file) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read SIDESTEP_CONFIG {path!r}: {error}") from None
    block: Any = whole.get("logging") if isinstance(whole, dict) else None  # pyright: ignore
    if block is None:
        return {}
    known_keys(block, _LOGGING_KEYS, f"{path}: logging")
    return cast("Mapping[str, Any]", block)


def _file_wandb(file: Mapping[str, Any]) -> dict[str, object] | None:
    block = file.get("wandb")
    if block is None:
        return None
    known_keys(block, _WANDB_KEYS, "logging.wandb")
    if not block.get("enabled", True):
        return None
    return {k: v for k, v in plain_config(block).items() if k != "enabled" and v is not None}


def known_keys(block: Any, known: tuple[str, ...], where: str) -> None:
    """See that `block` is a mapping with no other keys.

    Raises:
        ConfigurationError: it is not; the nearest known key is named.
    """
    if not isinstance(block, Mapping):
        raise ConfigurationError(f"{where} must be a mapping")
    for key in cast("Mapping[Any, Any]", block):
        if key not in known:
            near = get_close_matches(str(key), known, 1, 0.0)
            raise ConfigurationError(f"{where}: unknown key {key!r}; did you mean {near[0]!r}?")

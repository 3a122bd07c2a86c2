"""The daemon's settings: argument, environment, the file's `sidecar:` block, default."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal, cast
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from sidestep.proto import SidestepError
from sidestep.proto.addresses import is_loopback, is_tcp
from sidestep.proto.paths import state_dir as default_state_dir

from .alarms import Rules
from .exposition import address as exposition
from .supervision.wanted import Wanted

_SECRETS: Final = frozenset({"webhook_url"})
"""What no message shows."""


class ConfigurationError(SidestepError, ValueError):
    """The configuration cannot be used as it is."""


class SidecarSettings(BaseSettings):
    """What can be set, under `sidecar:` in the file or as `SIDESTEP_<NAME>` in the environment."""

    model_config = SettingsConfigDict(
        env_prefix="SIDESTEP_", extra="forbid", frozen=True, allow_inf_nan=False
    )

    endpoint: str | None = Field(
        None,
        description="A further ZeroMQ address to listen at: ipc://PATH or tcp://ADDRESS:PORT.",
    )
    keys: Path | None = Field(
        None,
        description="The folder of CURVE keys that `sidestep keygen` made; TCP beyond the loopback "
        "needs it.",
    )
    forward_to: str | None = Field(
        None,
        description="The next daemon's ZeroMQ address: what clients send is passed on to it, and "
        "written there instead of here.",
    )
    forward_keys: Path | None = Field(
        None,
        description="The folder with the next daemon's public key and this one's client key; as "
        "keys, unless this one has clients over TCP, too.",
    )
    state_dir: Path = Field(
        default_factory=lambda: Path(default_state_dir(os.environ, os.path.expanduser("~"))),
        description="Where the journal and the sinks' cursors are. On a local disk, never on NFS.",
    )
    journal_sync: Literal["normal", "full"] = Field(
        "normal", description="full: fsync at each commit, to survive a power cut."
    )
    credit_mb: int = Field(
        8, ge=1, le=1024, description="Unacknowledged MiB that a client may send."
    )
    max_clients: int = Field(1024, ge=1, description="Clients that are served at once.")
    history_mb: int = Field(
        64, ge=0, description="MiB of what is written everywhere that are kept, for tail --history."
    )
    archive: bool = Field(
        True, description="Keep every run's numbers in float64 under LOG_DIR/scalars, for export."
    )
    mirror: str | None = Field(
        None,
        description="Where event files and archives are copied to as they grow: "
        "s3://BUCKET/PREFIX, or any other address that fsspec knows.",
    )
    mirror_interval_s: float = Field(
        15.0, gt=0, description="Seconds between two copies of a file, at least."
    )
    prometheus: str | None = Field(
        None,
        description="ADDRESS:PORT at which Prometheus can scrape metrics, such as 127.0.0.1:9400.",
    )
    prometheus_token: Path | None = Field(
        None, description="A file with the bearer token that scrapers must present."
    )
    prometheus_anyone: bool = Field(
        False,
        description="Serve metrics beyond the loopback without a token, to whoever reaches them.",
    )
    prometheus_max_series: int = Field(
        2000, ge=0, description="Values of runs that Prometheus is shown, at most."
    )
    otlp_endpoint: str | None = Field(
        None,
        description="URL of an OpenTelemetry Collector's OTLP/HTTP receiver, such as "
        "http://127.0.0.1:4318; every run's numbers are sent there.",
    )
    otlp_interval_s: float = Field(
        1.0, ge=0, description="Of each tag one value in so many seconds is sent; 0: every one."
    )
    alarms: Rules = Field(
        default_factory=Rules,
        description="Thresholds of the collapse alarms; `enabled: false` for none.",
    )
    webhook_url: SecretStr | None = Field(
        None,
        description="Where alarms are posted, in the JSON of Slack's incoming webhooks. A secret.",
    )
    webhook_min_state: Literal["WATCH", "WARN", "COLLAPSED", "NONFINITE"] = Field(
        "WARN", description="The least state of an alarm that the webhook is told."
    )
    wandb_backlog_mb: int = Field(
        1024,
        ge=1,
        description="MiB of the journal that may wait for W&B alone; the oldest are dropped then.",
    )
    worker_deadline_s: float = Field(
        120.0, gt=0, description="Seconds after which a sink's worker is killed that says nothing."
    )
    sample_interval_s: float = Field(
        10.0, gt=0, description="Seconds between two system/* values of a run."
    )
    reduce_timeout_s: float = Field(
        30.0,
        ge=0,
        description="Seconds that a reduction over ranks waits for a rank that may still speak.",
    )
    drain_timeout_s: float = Field(
        60.0, ge=0, description="Seconds that stop and SIGTERM wait for the sinks."
    )
    idle_s: float = Field(
        3.0,
        ge=0,
        description="Seconds after its last client that a daemon leaves which a client started.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _nothing_is_none(cls, value: Any, info: ValidationInfo) -> Any:
        """An empty text, as of a variable set to nothing, is the default: no address, no path."""
        if value == "" and info.field_name is not None:
            return cls.model_fields[info.field_name].get_default(call_default_factory=True)
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the interface is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment alone: `load` puts the file below it and the arguments above."""
        return (init_settings, env_settings)


def load(path: str | None, environ: Mapping[str, str], **arguments: Any) -> SidecarSettings:
    """Read the settings.

    Args:
        path: the file; None for the one that `SIDESTEP_CONFIG` names, if any.
        environ: the environment.
        arguments: settings that were given as arguments; None means not given.

    Raises:
        ConfigurationError: a key is unknown or a value wrong; says which, and the nearest key.
    """
    block = _block(path or environ.get("SIDESTEP_CONFIG"))
    _known_keys(block, SidecarSettings.model_fields, "sidecar")
    _known_keys(block.get("alarms"), Rules.__dataclass_fields__, "sidecar.alarms")
    below = {k: v for k, v in block.items() if f"SIDESTEP_{k.upper()}" not in environ}
    above = {k: v for k, v in arguments.items() if v is not None}
    try:
        settings = SidecarSettings(**{**below, **above})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        got = "a secret" if where in _SECRETS else repr(first["input"])
        raise ConfigurationError(f"sidecar.{where}: {first['msg']} (got {got})") from None
    if settings.endpoint:
        _check_endpoint(settings.endpoint, settings.keys is not None)
    if settings.forward_to:
        _check_forward(settings)
    if settings.otlp_endpoint is not None:
        settings = settings.model_copy(update={"otlp_endpoint": _otlp_url(settings.otlp_endpoint)})
    if settings.prometheus:
        _check_prometheus(settings.prometheus, settings)
    if settings.webhook_url:
        _check_webhook(settings.webhook_url.get_secret_value())
    return settings


def _known_keys(block: Any, known: Iterable[str], where: str) -> None:
    names = list(known)
    for key in cast("dict[str, Any]", block) if isinstance(block, dict) else ():
        if key not in names:
            near = get_close_matches(str(key), names, 1, 0.0)[0]
            raise ConfigurationError(f"{where}: unknown key {key!r}; did you mean {near!r}?")


def _block(path: str | None) -> dict[str, Any]:
    if not path:
        return {}
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            whole: Any = yaml.safe_load(file) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read the configuration {path!r}: {error}") from None
    if not isinstance(whole, dict):
        raise ConfigurationError(f"{path}: expected the blocks `logging:` and `sidecar:`")
    for key in cast("dict[str, Any]", whole):
        if key not in ("logging", "sidecar"):
            near = get_close_matches(str(key), ("logging", "sidecar"), 1, 0.0)[0]
            raise ConfigurationError(f"{path}: unknown key {key!r}; did you mean {near!r}?")
    block: Any = cast("dict[str, Any]", whole).get("sidecar") or {}
    if not isinstance(block, dict):
        raise ConfigurationError(f"{path}: sidecar must be a mapping")
    return cast("dict[str, Any]", block)


def _check_webhook(url: str) -> None:
    """See that alarms can be posted to `url`, without showing it."""
    try:
        parts = urlsplit(url)
        well = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port != 0)
    except ValueError:
        well = False
    if not well or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigurationError(
            "webhook_url is no address to post to: expected https://HOST/PATH as the service shows "
            "it for its incoming webhook, ASCII without spaces (it is a secret, and not shown here)"
        )


def _check_forward(settings: SidecarSettings) -> None:
    address = settings.forward_to or ""
    if not address.startswith(("ipc://", "tcp://")) or address.endswith(("//", ":", ":*")):
        raise ConfigurationError(
            f"forward_to {address!r} must be the address of a daemon: ipc://PATH or tcp://HOST:PORT"
        )
    if address == settings.endpoint:
        raise ConfigurationError(
            f"forward_to {address!r} is this daemon's own endpoint: name the next daemon's"
        )
    has_keys = settings.forward_keys is not None or settings.keys is not None
    if is_tcp(address) and not has_keys and not is_loopback(address):
        raise ConfigurationError(
            f"forward_to {address!r}: TCP without keys is for loopback only. Make some with "
            "`sidestep keygen DIR --client NAME` where the next daemon is, and set `sidecar: "
            "forward_keys: DIR` or SIDESTEP_FORWARD_KEYS here"
        )


def _check_endpoint(endpoint: str, has_keys: bool) -> None:
    if endpoint.startswith("ipc://"):
        return
    if not is_tcp(endpoint):
        raise ConfigurationError(f"endpoint {endpoint!r} must begin with ipc:// or tcp://")
    if not has_keys and not is_loopback(endpoint):
        raise ConfigurationError(
            f"endpoint {endpoint!r}: TCP without keys is for loopback only, such as "
            "tcp://127.0.0.1:5790. Make keys with `sidestep keygen DIR`, and set `sidecar: keys: "
            "DIR` or SIDESTEP_KEYS"
        )


def _check_prometheus(address: str, settings: SidecarSettings) -> None:
    try:
        host, _ = exposition.parse(address)
    except ValueError as error:
        raise ConfigurationError(f"sidecar.prometheus: {error}") from None
    if settings.prometheus_token is not None:
        try:
            exposition.read_token(settings.prometheus_token)
        except ValueError as error:
            raise ConfigurationError(f"sidecar.prometheus_token: {error}") from None
    is_open = settings.prometheus_token is not None or settings.prometheus_anyone
    if not is_open and not exposition.is_loopback(host):
        raise ConfigurationError(
            f"sidecar.prometheus: {address!r} can be reached from other machines, and the metrics "
            "have the names and values of all runs. Take 127.0.0.1, or have scrapers present a "
            "token (`prometheus_token: FILE`), or let anyone read (`prometheus_anyone: true`)"
        )


def _otlp_url(endpoint: str) -> str:
    """The URL of the receiver for metrics: OTLP's own path, when none is given."""
    url = None
    try:
        url = urlsplit(endpoint)
        well = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        well = False
    if url is None or not well:
        raise ConfigurationError(
            f"sidecar.otlp_endpoint: {endpoint!r} is no URL of an OTLP/HTTP receiver, such as "
            "http://127.0.0.1:4318 (gRPC's port, 4317, is another protocol)"
        )
    return endpoint if url.path.strip("/") else urlunsplit(url._replace(path="/v1/metrics"))


def wanted_by(settings: SidecarSettings) -> Wanted:
    """What the daemon's settings say."""
    keys = settings.forward_keys or settings.keys
    return Wanted(
        settings.archive,
        settings.mirror,
        settings.mirror_interval_s,
        settings.webhook_url.get_secret_value() if settings.webhook_url else "",
        settings.webhook_min_state,
        settings.forward_to,
        str(keys) if keys else None,
        settings.otlp_endpoint,
        settings.otlp_interval_s,
    )

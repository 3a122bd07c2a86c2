"""A client's CURVE keys: read from the folder that `sidestep keygen` made, and checked."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

from sidestep.proto import keys as files
from sidestep.proto.addresses import is_loopback, is_tcp
from sidestep.proto.keys import KeysError, check_folder, key_in

from .config_file import ConfigurationError

_NEEDED: Final = (
    "Make them with `sidestep keygen DIR` where the daemon is, and name the folder in "
    "SIDESTEP_KEYS or `logging: keys:`"
)


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What a client needs to reach a daemon over TCP.

    Attributes:
        folder: where the keys are.
        daemon: the daemon's public key, 32 bytes.
        secret: the client's secret key, 32 bytes.
    """

    folder: str
    daemon: bytes
    secret: bytes = field(repr=False)


def for_endpoint(endpoint: str, folder: object) -> ClientKeys | None:
    """The keys that a connection to `endpoint` needs; None where it needs none.

    Args:
        endpoint: the daemon's ZeroMQ address.
        folder: where the keys are, or None.

    Raises:
        ConfigurationError: keys are needed and not there, or not as they must be.
    """
    if not is_tcp(endpoint):
        return None  # the socket's file says who may connect
    if folder is None:
        if not is_loopback(endpoint):
            raise ConfigurationError(
                f"endpoint {endpoint!r} leaves this machine, and TCP does that with keys alone. "
                f"{_NEEDED}"
            )
        return None
    if not isinstance(folder, (str, os.PathLike)):
        raise ConfigurationError(f"keys must be the path of a folder, not {type(folder).__name__}")
    try:
        return _load(os.path.abspath(os.fspath(folder)))
    except KeysError as error:
        raise ConfigurationError(f"keys: {error}") from None


def _load(folder: str) -> ClientKeys:
    try:
        found = os.stat(folder)
    except OSError as error:
        raise KeysError(f"cannot read the folder {folder}: {error.strerror}. {_NEEDED}") from None
    check_folder(folder, found.st_mode, found.st_uid, os.geteuid())
    return ClientKeys(
        folder,
        _read(os.path.join(folder, files.DAEMON_PUBLIC), files.PUBLIC),
        _read(os.path.join(folder, files.CLIENT_KEY), files.SECRET),
    )


def _read(path: str, kind: str) -> bytes:
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            found, data = os.fstat(file.fileno()), file.read(files.MAX_FILE_BYTES)
    except OSError as error:
        raise KeysError(f"cannot read {path}: {error.strerror}. {_NEEDED}") from None
    return key_in(data, kind, path, found.st_mode, found.st_uid, os.geteuid())


def _without_waiting(path: str, flags: int) -> int:
    """A pipe in a key's place would be waited for."""
    return os.open(path, flags | os.O_NONBLOCK)

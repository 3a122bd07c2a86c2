"""A client's CURVE keys: read from the folder that `sidestep keygen` made, and checked."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import Final

from sidestep.proto import keys as files
from sidestep.proto.addresses import is_loopback, is_tcp
from sidestep.proto.keys import KeysError, check_folder, check_private, parse_key

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
        # A pipe in its place must not be waited for.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise KeysError(f"{path} is no regular file")
            if kind == files.SECRET:
                check_private(path, found.st_mode, found.st_uid, os.geteuid())
            return parse_key(file.read(files.MAX_FILE_BYTES).decode("ascii"), kind, path)
    except UnicodeDecodeError:
        raise KeysError(f"{path} holds no key: it is no text") from None
    except OSError as error:
        raise KeysError(f"cannot read {path}: {error.strerror}. {_NEEDED}") from None

"""The daemon's CURVE keys, and the list of clients that may connect: read from their folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from sidestep.proto import keys as files
from sidestep.proto.keys import KeysError, check_folder, key_in

_FRESH_S: Final = 1.0
"""A file that is changed in place counts after so long; one that comes or goes, at once."""


@dataclass(frozen=True, slots=True)
class DaemonKeys:
    """What a daemon needs to serve TCP beyond its own machine.

    Attributes:
        folder: where the keys are.
        secret: the daemon's secret key, 32 bytes.
    """

    folder: str
    secret: bytes = field(repr=False)


def load(folder: str) -> DaemonKeys:
    """The keys of a daemon in `folder`.

    Raises:
        KeysError: something is missing, malformed, or open to others; says what to do.
    """
    _look_at(folder)
    path = os.path.join(folder, files.DAEMON_KEY)
    if not os.path.lexists(path):
        raise KeysError(
            f"there is no {path}: a daemon that listens on TCP needs the folder that `sidestep "
            "keygen DIR` makes on its own machine"
        )
    secret = read_key(path, files.SECRET)
    _look_at(os.path.join(folder, files.CLIENTS))
    return DaemonKeys(folder, secret)


def read_key(path: str, kind: str) -> bytes:
    """The key in a file: 32 bytes.

    Raises:
        KeysError: there is none, one of the other kind, or a secret one that others can read.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            found, data = os.fstat(file.fileno()), file.read(files.MAX_FILE_BYTES)
    except OSError as error:
        raise KeysError(f"cannot read the key {path}: {error.strerror}") from None
    return key_in(data, kind, path, found.st_mode, found.st_uid, os.geteuid())


def _without_waiting(path: str, flags: int) -> int:
    """A pipe in a key's place would be waited for."""
    return os.open(path, flags | os.O_NONBLOCK)


def _look_at(folder: str) -> None:
    try:
        found = os.stat(folder)
    except OSError as error:
        raise KeysError(
            f"cannot read the folder of keys {folder}: {error.strerror}. "
            "Make one with: sidestep keygen DIR"
        ) from None
    check_folder(folder, found.st_mode, found.st_uid, os.geteuid())


class AllowList:
    """Who may connect: the public keys in a folder, read again when it changes.

    Args:
        folder: with one file ``NAME.public`` for each client.
        log: says something to the daemon's log.
    """

    def __init__(self, folder: str, log: Callable[[str], None]) -> None:
        self._folder = folder
        self._log = log
        self._names: Mapping[bytes, str] = {}
        self._seen: int | None = None
        self._read_at = 0.0
        self._said: set[str] = set()

    def names(self) -> Mapping[bytes, str]:
        """The clients' names by their keys, as the folder has them now."""
        now = time.monotonic()
        try:
            found = os.stat(self._folder)
            if found.st_mtime_ns != self._seen or now - self._read_at > _FRESH_S:
                check_folder(self._folder, found.st_mode, found.st_uid, os.geteuid())
                self._names = self._read()
                self._seen, self._read_at = found.st_mtime_ns, now
        except (OSError, KeysError) as error:
            self._say(f"nobody may connect over TCP: {error}")
            self._names, self._seen = {}, None
        return self._names

    def _read(self) -> dict[bytes, str]:
        names: dict[bytes, str] = {}
        for name in sorted(os.listdir(self._folder)):
            if not name.endswith(files.PUBLIC_SUFFIX):
                continue
            try:
                key = read_key(os.path.join(self._folder, name), files.PUBLIC)
            except KeysError as error:
                self._say(f"left out of the list of clients: {error}")
            else:
                names.setdefault(key, name.removesuffix(files.PUBLIC_SUFFIX))
        return names

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._log(text)

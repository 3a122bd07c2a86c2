"""Makes CURVE keys and the folders that they lie in: whole or not at all, and never over others."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from typing import Final

import zmq
from zmq.utils import z85

from sidestep.proto import keys as files
from sidestep.proto.keys import KeysError, is_name, key_text

from .keys import read_key

FIRST_CLIENT: Final = "client"
"""What the list calls the client key that lies beside the daemon's."""

_SECRET_MODE: Final = 0o600
_PUBLIC_MODE: Final = 0o644
_DAEMON_TEXT: Final = "sidestep: the daemon's public key. Its clients need it; anybody may see it."
_DAEMON_OWN_TEXT: Final = "sidestep: the daemon's SECRET key. Leave it here, and show it nobody."
_CLIENT_TEXT: Final = "sidestep: the public key of a client. Delete this file to shut it out."
_CLIENT_OWN_TEXT: Final = "sidestep: a client's SECRET key. For its machine, and nobody else."


def make_folder(folder: str) -> None:
    """Make a folder with a daemon's keys and those of a first client.

    Raises:
        KeysError: there is something already, or it cannot be written; nothing was changed.
    """
    draft = _draft_beside(folder)
    try:
        daemon, client = _pair(), _pair()
        _write(draft, files.DAEMON_KEY, files.SECRET, daemon[1], _DAEMON_OWN_TEXT)
        _write(draft, files.DAEMON_PUBLIC, files.PUBLIC, daemon[0], _DAEMON_TEXT)
        _write(draft, files.CLIENT_KEY, files.SECRET, client[1], _CLIENT_OWN_TEXT)
        listed = os.path.join(draft, files.CLIENTS)
        os.mkdir(listed, 0o700)
        _write(listed, FIRST_CLIENT + files.PUBLIC_SUFFIX, files.PUBLIC, client[0], _CLIENT_TEXT)
        _put(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def add_client(folder: str, name: str) -> str:
    """Make a further client's keys, and put it on the list.

    Args:
        folder: the daemon's folder of keys.
        name: what the client is called: letters, digits, ``.``, ``_`` and ``-``, at most 64.

    Returns:
        The folder that the client's machine needs.

    Raises:
        KeysError: the name is taken or no name, the folder is none of `make_folder`'s, or it
            cannot be written; nothing was changed.
    """
    if not is_name(name):
        raise KeysError(
            f"a client's name has 1 to 64 letters, digits, '.', '_' or '-', and begins with a "
            f"letter or a digit, not {name!r}"
        )
    daemon = read_key(os.path.join(folder, files.DAEMON_PUBLIC), files.PUBLIC)
    listed = os.path.join(folder, files.CLIENTS, name + files.PUBLIC_SUFFIX)
    if os.path.lexists(listed):
        raise KeysError(f"{listed} is there already; choose another name, or delete it first")
    trainers = os.path.join(folder, files.TRAINERS)
    _make_directory(trainers)
    target = os.path.join(trainers, name)
    draft = _draft_beside(target)
    try:
        client = _pair()
        _write(draft, files.CLIENT_KEY, files.SECRET, client[1], _CLIENT_OWN_TEXT)
        _write(draft, files.DAEMON_PUBLIC, files.PUBLIC, daemon, _DAEMON_TEXT)
        _put(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    # Under another name until it is whole: a daemon may be reading the list just now.
    parent, new = os.path.split(listed)
    _write(parent, f".{new}.new", files.PUBLIC, client[0], _CLIENT_TEXT)
    os.rename(os.path.join(parent, f".{new}.new"), listed)
    return target


def _pair() -> tuple[bytes, bytes]:
    """A new public and secret key."""
    if not zmq.has("curve"):
        raise KeysError("this ZeroMQ was built without CURVE: pip install --force-reinstall pyzmq")
    public, secret = zmq.curve_keypair()
    return z85.decode(public), z85.decode(secret)


def _draft_beside(folder: str) -> str:
    if os.path.lexists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise KeysError(f"{folder} is there already, and nothing in it was touched: name a new one")
    parent, name = os.path.split(folder)
    try:
        os.makedirs(parent, exist_ok=True)
        return tempfile.mkdtemp(prefix=f".{name}.", dir=parent)
    except OSError as error:
        raise KeysError(f"cannot make {folder}: {error.strerror}") from None


def _put(draft: str, folder: str) -> None:
    """Have `draft` take its place, which nobody else may have taken meanwhile."""
    try:
        os.rename(draft, folder)
    except OSError as error:
        taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
        reason = "it is there already" if taken else error.strerror
        raise KeysError(f"cannot make {folder}: {reason}") from None


def _make_directory(path: str) -> None:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise KeysError(f"cannot make {path}: {error.strerror}") from None


def _write(folder: str, name: str, kind: str, key: bytes, comment: str) -> None:
    path = os.path.join(folder, name)
    mode = _SECRET_MODE if kind == files.SECRET else _PUBLIC_MODE
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags, mode), "w", encoding="ascii") as file:
            file.write(key_text(kind, key, comment))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise KeysError(f"cannot write {path}: {error.strerror}") from None

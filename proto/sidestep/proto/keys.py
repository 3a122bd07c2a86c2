"""The CURVE keys of TCP: names and text of their files. Nothing is opened here.

A daemon's folder, made by ``sidestep keygen``, mode 0700::

    daemon.secret            the daemon's own; stays where it is (0600)
    daemon.public            what clients know it by
    client.secret            a client's own, for trainers that see this folder (0600)
    clients/NAME.public      who may connect: one file a client; deleting it shuts that client out
    trainers/NAME/           what a further client needs, to be moved to its machine:
        client.secret, daemon.public

So a client's folder needs ``client.secret`` and ``daemon.public``; a daemon's folder is one too.

A key's file is one line, the kind and 64 hexadecimal digits, and comments that begin with ``#``.
The kind is there because files get mixed up: a secret key where a public one belongs is refused.
"""

from __future__ import annotations

import re
import stat
from typing import Final

from .errors import SidestepError

DAEMON_KEY: Final = "daemon.secret"
DAEMON_PUBLIC: Final = "daemon.public"
CLIENT_KEY: Final = "client.secret"
CLIENTS: Final = "clients"
TRAINERS: Final = "trainers"
PUBLIC_SUFFIX: Final = ".public"

PUBLIC: Final = "sidestep-public-key"
SECRET: Final = "sidestep-secret-key"  # noqa: S105 - the word that stands before one

KEY_BYTES: Final = 32
MAX_FILE_BYTES: Final = 4096
ZAP_DOMAIN: Final = b"sidestep"

_LINE: Final = re.compile(rf"({PUBLIC}|{SECRET}) ([0-9a-f]{{{2 * KEY_BYTES}}})")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class KeysError(SidestepError):
    """A key cannot be used as it is; the message never holds one."""


def key_text(kind: str, key: bytes, comment: str) -> str:
    """What stands in a key's file."""
    return f"# {comment}\n{kind} {key.hex()}\n"


def parse_key(text: str, kind: str, path: str) -> bytes:
    """The key in a file's text: 32 bytes.

    Raises:
        KeysError: there is none, or one of the other kind.
    """
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    match = _LINE.fullmatch(found[0]) if len(found) == 1 else None
    if match is None:
        raise KeysError(
            f"{path} holds no key: expected one line, {kind} and {2 * KEY_BYTES} hexadecimal "
            "digits, as `sidestep keygen DIR` writes it"
        )
    if match[1] != kind:
        wanted, other = ("public", "secret") if kind == PUBLIC else ("secret", "public")
        raise KeysError(f"{path} holds a {other} key where a {wanted} one belongs")
    return bytes.fromhex(match[2])


def key_in(data: bytes, kind: str, path: str, mode: int, owner: int, user: int) -> bytes:
    """The key that a file holds: 32 bytes.

    Args:
        data: the beginning of the file, `MAX_FILE_BYTES` of it.
        kind: the kind of key that belongs there.
        path: the file.
        mode: its mode.
        owner: whose file it is.
        user: who we are.

    Raises:
        KeysError: there is none, one of the other kind, or a secret one that others can read.
    """
    if not stat.S_ISREG(mode):
        raise KeysError(f"{path} is no regular file")
    if kind == SECRET:
        check_private(path, mode, owner, user)
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise KeysError(f"{path} holds no key: it is no text") from None
    return parse_key(text, kind, path)


def check_private(path: str, mode: int, owner: int, user: int) -> None:
    """See that nobody else can read a secret key.

    Raises:
        KeysError: somebody can.
    """
    if owner not in (user, 0):
        raise KeysError(f"{path} belongs to user {owner}, and this is user {user}: make your own")
    if mode & _OTHERS:
        raise KeysError(
            f"others may read or write the secret key {path} (mode {stat.S_IMODE(mode):04o}). "
            f"Run: chmod 600 {path}"
        )


def check_folder(path: str, mode: int, owner: int, user: int) -> None:
    """See that nobody else can put a key into a folder of keys.

    Raises:
        KeysError: somebody can, or it is no folder.
    """
    if not stat.S_ISDIR(mode):
        raise KeysError(f"{path} is no directory: keys are in one, as `sidestep keygen` makes it")
    if owner not in (user, 0):
        raise KeysError(f"{path} belongs to user {owner}, and this is user {user}: make your own")
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KeysError(
            f"others may put keys into {path} (mode {stat.S_IMODE(mode):04o}). "
            f"Run: chmod go-w {path}"
        )


def is_name(name: str) -> bool:
    """Whether a client's key may be called so: letters, digits, ``.``, ``_`` and ``-``."""
    return _NAME.fullmatch(name) is not None

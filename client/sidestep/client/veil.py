"""What must not travel with a configuration: passwords, keys and tokens, each replaced by ``***``.

A configuration is shown to everybody who may see the run. So a value is hidden when its name says
that it is a secret, when it is also the value of such a variable of the environment (whatever its
name is here), and in an address, before the host. Names that only sound so are left alone:
``num_tokens``, ``pad_token="<pad>"``, ``sort_key="name"``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

HIDDEN: Final = "***"

_WORDS: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_SECRETS: Final = frozenset(
    {"apikey", "credential", "credentials", "passphrase", "passwd", "password", "pwd", "secret"}
)
_SECRET_PAIRS: Final = frozenset(
    (before, last)
    for last in ("key", "token")
    for before in ("access", "api", "auth", "bearer", "private", "refresh", "secret", "session")
)
_PERHAPS: Final = frozenset({"auth", "key", "token"})
"""Names that end so are secrets when the value looks like one."""

_RANDOM: Final = re.compile(r"[A-Za-z0-9_.~+/=-]{20,}")
_IN_ADDRESS: Final = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_MIN_CHARS: Final = 12
"""A shorter value of a variable may be a word that stands in a text for other reasons."""


def is_secret(name: str, value: object) -> bool:
    """Whether a setting of this name and value is a secret."""
    words = [word.lower() for word in _WORDS.findall(name)] or [""]
    if words[-1] in _SECRETS or tuple(words[-2:]) in _SECRET_PAIRS:
        return isinstance(value, (str, bytes, Mapping, list, tuple)) and len(value) > 0
    if words[-1] not in _PERHAPS or not isinstance(value, str) or not _RANDOM.fullmatch(value):
        return False
    # A key may be the name of a column; one that is random has digits too.
    return words[-1] != "key" or any(char.isdigit() for char in value)


def known_secrets(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The secrets in an environment, the longest first."""
    found = {v for k, v in environ.items() if len(v) >= _MIN_CHARS and is_secret(k, v)}
    return tuple(sorted(found, key=len, reverse=True))


def veiled(text: str, known: tuple[str, ...]) -> str:
    """A text without the secrets in it."""
    for secret in known:
        text = text.replace(secret, HIDDEN)
    return _IN_ADDRESS.sub(HIDDEN, text) if "@" in text else text

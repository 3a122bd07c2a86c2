"""Where the metrics are served, by the setting's text alone, and who may reach it there."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Final

_MIN_TOKEN: Final = 16
_EXAMPLE: Final = "such as 127.0.0.1:9400 or [::1]:9400"


def parse(text: str) -> tuple[str, int]:
    """Host and port of ``ADDRESS:PORT``; port 0 stands for any that is free.

    Raises:
        ValueError: it is no such address; says what was expected.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{text!r} is no ADDRESS:PORT, {_EXAMPLE}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets, {_EXAMPLE}")
    if host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(
                f"{text!r}: expected a numeric address of this machine, or localhost, {_EXAMPLE}"
            ) from None
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`, as `parse` gave it."""
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def is_own_name(header: str | None) -> bool:
    """Whether a request's Host names an address, not somebody's domain.

    A page in a browser can have its own domain resolve to 127.0.0.1 and then read what answers
    there; such a request names that domain. None, as of HTTP/1.0, is no browser's.
    """
    if header is None:
        return True
    host = header.strip()
    if not host.endswith("]") and host.rpartition(":")[2].isdigit():
        host = host.rpartition(":")[0]
    host = host.removeprefix("[").removesuffix("]").lower()
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


def url(host: str, port: int) -> str:
    """The address as a scraper or a browser takes it."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"


def read_token(path: Path) -> str:
    """The bearer token in a file.

    Raises:
        ValueError: there is none that could be presented, or others can read it; says what to do.
    """
    try:
        found = path.read_text(encoding="ascii").strip()
        others = path.stat().st_mode & 0o077
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read it: {error}") from None
    if len(found) < _MIN_TOKEN or not found.isprintable() or " " in found:
        raise ValueError(
            f"{path} must hold one word of at least {_MIN_TOKEN} printable characters, such as "
            "`openssl rand -hex 32` makes"
        )
    if others:
        raise ValueError(f"{path} can be read by others: chmod 600 {path}")
    return found

"""Which ZeroMQ addresses stay on this machine: by their text alone, nothing is looked up."""

from __future__ import annotations

import ipaddress
from typing import Final

_TCP: Final = "tcp://"


def is_tcp(endpoint: str) -> bool:
    """Whether this is a TCP address."""
    return endpoint.startswith(_TCP)


def tcp_host(endpoint: str) -> str:
    """The host of ``tcp://HOST:PORT``, without the brackets of IPv6."""
    return endpoint.removeprefix(_TCP).rpartition(":")[0].removeprefix("[").removesuffix("]")


def is_loopback(endpoint: str) -> bool:
    """Whether a TCP address is of the loopback: 127.0.0.0/8, ::1 or ``localhost``."""
    host = tcp_host(endpoint)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

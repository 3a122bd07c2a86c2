"""Outboxes on this machine that are for a daemon elsewhere: found, and brought there."""

from __future__ import annotations

import glob
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sidestep.proto.addresses import is_loopback, is_tcp, tcp_host
from sidestep.proto.keys import KeysError
from sidestep.proto.paths import REMOTE_FILE, RuntimePaths, outbox_dirs, state_dir

from ..forwarding.links import RemoteKeys, read_keys
from ..ingest.adopt import find_dead
from .forward import ForwardError, forward


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A folder of outboxes for one daemon.

    Attributes:
        path: the folder.
        endpoint: the daemon's TCP address.
        keys: the folder of keys that the trainers had; "" for none.
    """

    path: str
    endpoint: str
    keys: str


def is_elsewhere(endpoint: str | None) -> bool:
    """Whether this is the TCP address of a daemon on another machine; may ask the name service."""
    if not endpoint or not is_tcp(endpoint) or is_loopback(endpoint):
        return False
    host = tcp_host(endpoint)
    if host == "*":
        return False
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return True
    return not any(_is_own(family, address) for family, _, _, _, address in found)


def _is_own(family: int, address: Sequence[object]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(tuple(address))
    except OSError:
        return False
    return True


def folders(paths: RuntimePaths, environ: Mapping[str, str]) -> Iterator[RemoteFolder]:
    """All folders of this user's and this runtime directory's clients that are for elsewhere."""
    state = state_dir(environ, os.path.expanduser("~"))
    for place in outbox_dirs(paths, state, os.getuid()):
        for path in sorted(glob.glob(glob.escape(place) + "-*")):
            try:
                with open(os.path.join(path, REMOTE_FILE), encoding="utf-8") as file:
                    endpoint, keys, *_ = [*file.read().splitlines(), "", ""]
            except (OSError, UnicodeDecodeError):
                continue
            if is_tcp(endpoint):
                yield RemoteFolder(path, endpoint, keys)


def deliver(
    paths: RuntimePaths,
    environ: Mapping[str, str],
    timeout_s: float | None,
    say: Callable[[str], None],
) -> list[str]:
    """Bring everything that dead trainers left to where it belongs.

    Args:
        paths: the runtime directory of the trainers.
        environ: the environment; `SIDESTEP_KEYS` wins over the keys that the trainers had.
        timeout_s: how long to try for each outbox; None for as long as it takes.
        say: is told what was delivered.

    Returns:
        What could not be delivered, and why: a sentence each.
    """
    failures: list[str] = []
    for folder in folders(paths, environ):
        for adoption in find_dead([folder.path], (), say):
            try:
                forward(adoption, folder.endpoint, _keys(folder, environ), timeout_s)
            except (ForwardError, KeysError) as error:
                failures.append(str(error))
                adoption.close()
            else:
                run = adoption.hello.run.name
                say(f"delivered what a dead trainer of run {run!r} left to {folder.endpoint}")
    return failures


def _keys(folder: RemoteFolder, environ: Mapping[str, str]) -> RemoteKeys | None:
    keys = environ.get("SIDESTEP_KEYS") or folder.keys
    if not keys:
        return None
    return read_keys(keys)

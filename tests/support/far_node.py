"""Another machine, as far as the network goes: a network namespace with a cable to this one."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

_IP: Final = shutil.which("ip")
_NETWORKS: Final = (213, 214, 215)
_DAEMON: Final = "10.{}.{}.1"
_TRAINER: Final = "10.{}.{}.2"


class NoFarNodeError(Exception):
    """This machine lets us make none."""


class FarNode:
    """A namespace in which trainers run; the daemon is on this side of the cable.

    Args:
        which: of several that one test has.

    Attributes:
        near: this side's address, no loopback one.
        far: the other side's.
        prefix: what stands before a command that is to run there.
    """

    def __init__(self, which: int = 0) -> None:
        number, third = os.getpid() % 251 + 1, _NETWORKS[which]
        self.near, self.far = _DAEMON.format(third, number), _TRAINER.format(third, number)
        self._name = f"sst{os.getpid()}-{which}"
        self._cable = f"s{which}t{os.getpid() % 100_000_000}"
        self.prefix = ("ip", "netns", "exec", self._name)
        if _IP is None or os.geteuid() != 0:
            raise NoFarNodeError("needs root and the command ip")

    def __enter__(self) -> Self:
        near, far = f"{self._cable}n", f"{self._cable}f"
        try:
            self._ip("netns", "add", self._name)
            self._ip("link", "add", near, "type", "veth", "peer", "name", far)
            self._ip("link", "set", far, "netns", self._name)
            self._ip("addr", "add", f"{self.near}/30", "dev", near)
            self._ip("link", "set", near, "up")
            self._ip("-n", self._name, "addr", "add", f"{self.far}/30", "dev", far)
            self._ip("-n", self._name, "link", "set", far, "up")
            self._ip("-n", self._name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            self.close()
            raise NoFarNodeError(error.stderr) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def cut(self) -> None:
        """Pull the cable: nothing is refused, everything is swallowed."""
        self._ip("link", "set", f"{self._cable}n", "down")

    def mend(self) -> None:
        """Plug it in again."""
        self._ip("link", "set", f"{self._cable}n", "up")

    def close(self) -> None:
        """Take it down; the cable goes with its end."""
        for command in (["link", "del", f"{self._cable}n"], ["netns", "del", self._name]):
            with suppress(subprocess.CalledProcessError):
                self._ip(*command)

    def _ip(self, *arguments: str) -> None:
        assert _IP is not None
        subprocess.run([_IP, *arguments], check=True, capture_output=True, text=True, timeout=30)

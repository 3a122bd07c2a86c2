"""Containers as far as the kernel goes: namespaces, a read-only root, volumes, a plain user.

No image and no runtime: the root is this machine's own programs, mounted read-only. What a
container file says of volumes, environment and user is done as an engine would do it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
import pytest

from .sandbox import ROOT
from .waiting import wait_until

_SYSTEM: Final = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc")
_BOOT: Final = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$R"
mkdir -p "$R/proc" "$R/dev" "$R/tmp"
for d in $SYSTEM; do
  if [ -L "$d" ]; then cp -P "$d" "$R$d"
  elif [ -d "$d" ]; then
    mkdir -p "$R$d"
    mount --bind "$d" "$R$d"
    mount -o remount,bind,ro "$R$d"
  fi
done
mount -t tmpfs -o mode=755 tmpfs "$R/dev"
mknod -m 666 "$R/dev/null" c 1 3
mknod -m 666 "$R/dev/zero" c 1 5
mknod -m 666 "$R/dev/urandom" c 1 9
mkdir "$R/dev/shm"; mount -t tmpfs -o mode=1777,size=64m tmpfs "$R/dev/shm"
mount -t proc proc "$R/proc"
while [ "$1" != -- ]; do
  mkdir -p "$R$2"
  case "$1" in
    tmpfs) mount -t tmpfs -o mode=1777 tmpfs "$R$2" ;;
    *) mount --bind "$1" "$R$2" ;;
  esac
  shift 2
done
shift
mount -o remount,ro "$R"
hostname "$NAME"
exec chroot "$R" "$@"
"""


@dataclass
class Container:
    """One process with a file system, process numbers and shared memory of its own.

    Attributes:
        folder: an empty folder, where its root is put together.
        command: what runs in it, as process 1.
        user: user and group.
        env: its whole environment.
        mounts: where in it which folder of this machine is, or "tmpfs".
        name: its host name.
    """

    folder: Path
    command: Sequence[str]
    user: int
    env: Mapping[str, str]
    mounts: Mapping[str, str | Path]
    name: str = "container"
    _process: subprocess.Popen[str] = field(init=False)

    def start(self) -> Container:
        """Run it; its output goes into a pipe."""
        self.folder.mkdir(exist_ok=True)
        python = os.path.realpath(sys.base_prefix)
        mounts = {"/tmp": "tmpfs", str(ROOT): ROOT, python: python, **self.mounts}
        pairs = [str(word) for to, what in mounts.items() for word in (what, to)]
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork"]
            + ["sh", "-c", _BOOT, "sh", *pairs, "--", *self._as_user(), *self.command],
            env={
                "R": str(self.folder),
                "SYSTEM": " ".join(_SYSTEM),
                "NAME": self.name,
                "PATH": os.environ["PATH"],
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self

    def _as_user(self) -> list[str]:
        rights = ["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--clear-groups"]
        who = [f"--reuid={self.user}", f"--regid={self.user}"]
        words = [f"{key}={value}" for key, value in self.env.items()]
        path = f"PATH={Path(sys.executable).parent}:/usr/bin:/bin"
        return ["setpriv", *who, *rights, "env", "-i", path, *words]

    @property
    def pid(self) -> int:
        """Its process 1, as this machine numbers it."""
        found = wait_until(
            lambda: psutil.Process(self._process.pid).children(), 10, "no process in it"
        )
        return found[0].pid

    def line(self) -> str:
        """The next line that it prints."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as `docker exec` and `kubectl exec` do."""
        inside = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--ipc", "--uts", "--root"]
        return subprocess.run(
            [*inside, "--wd=/", *self._as_user(), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def signal(self, number: int) -> int:
        """Send its process 1 a signal, and wait for its end; the exit code."""
        os.kill(self.pid, number)
        return self._process.wait(60)

    def close(self) -> str:
        """End it; the rest of what it said."""
        with suppress(psutil.NoSuchProcess):
            for first in psutil.Process(self._process.pid).children():
                first.kill()  # and with it all others of its namespace
        said, _ = self._process.communicate(timeout=30)
        return said


def need_namespaces() -> None:
    """Skip the test where they cannot be made."""
    tools = ("unshare", "nsenter", "setpriv", "mknod", "mount")
    if os.geteuid() != 0 or any(shutil.which(tool) is None for tool in tools):
        pytest.skip(f"needs root and the commands {' '.join(tools)}")
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"namespaces cannot be made here: {done.stderr.decode().strip()}")

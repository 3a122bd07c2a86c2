"""Where a chaos run takes place: a sandbox with disks, a daemon that is there again, trainers."""

from __future__ import annotations

import io
import subprocess
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Final

import psutil

from tests.support.sandbox import SIDESTEP, Sandbox

from .disks import Disk, can_mount
from .plan import SHARED, Plan
from .troupe import Troupe

_STATE_MIB: Final = 256
_LOGS_MIB: Final = 384
_HELPERS: Final = ("sidestep.sidecar.derive", "sidestep.sidecar.samplers")
_PATIENCE_S: Final = 8.0
"""When a daemon has ended without being told to (its disk was full), so long is waited for a client
to start another."""


class Stage:
    """A sandbox with the disks and trainers of `plan`, and somebody who sees to the daemon.

    Attributes:
        sandbox: all processes live in it.
        troupe: the trainers.
        log: says something to who watches.
    """

    def __init__(self, plan: Plan, log: Callable[[str], None]) -> None:
        self.sandbox = Sandbox()
        self.log = log
        mount = can_mount()
        self._disks = {
            "s": Disk(self.sandbox.state, _STATE_MIB, mount=mount),
            SHARED: Disk(self.sandbox.root / SHARED, _LOGS_MIB, mount=mount),
        }
        self._starting: list[subprocess.Popen[bytes]] = []
        self._due_at: float | None = None
        self._starts = 0
        self.troupe = Troupe(self.sandbox, plan.cast)

    def begin(self) -> None:
        """A daemon, and all trainers."""
        self.start_daemon()
        self.sandbox.await_daemon()
        self.troupe.begin()

    def disk(self, place: str) -> Disk:
        """A disk by its folder's name."""
        return self._disks[place]

    # --- the daemon --------------------------------------------------------------------------

    def start_daemon(self) -> None:
        """`sidestep start`, without waiting for it."""
        self._starts += 1
        log = self.sandbox.root / f"start-{self._starts}.log"
        with log.open("wb") as out:
            self._starting.append(
                subprocess.Popen(
                    [*SIDESTEP, "start"],
                    cwd=self.sandbox.work,
                    env=self.sandbox.env(),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            )

    def daemon(self) -> psutil.Process | None:
        """The daemon's process, ready or not."""
        with suppress(psutil.NoSuchProcess):
            who = self.sandbox.control.daemon()
            return None if who is None else psutil.Process(who.pid)
        return None

    def daemon_due(self, seconds: float) -> None:
        """Somebody shall start a daemon then, unless a client has done it."""
        self._due_at = time.monotonic() + seconds

    def see_to_the_daemon(self) -> None:
        """Start one when it is time; call it often."""
        self._starting = [one for one in self._starting if one.poll() is None]
        now = time.monotonic()
        if self.sandbox.control.daemon() is not None:
            if self._due_at is not None and now > self._due_at:
                self._due_at = None
        elif self._due_at is None:
            self._due_at = now + _PATIENCE_S
        elif now > self._due_at and not self._starting:
            self._due_at = None
            self.start_daemon()

    def await_daemon(self, timeout_s: float) -> None:
        """See to it that a daemon answers."""
        deadline = time.monotonic() + timeout_s
        while self.sandbox.daemon_pid() is None:
            assert time.monotonic() < deadline, "no daemon answers"
            self.daemon_due(0)
            self.see_to_the_daemon()
            time.sleep(0.2)

    def helpers(self) -> list[psutil.Process]:
        """The daemon's processes that are no sinks: derivers, the GPU sampler."""
        return [process for process in self.sandbox.processes() if _is_helper(_words(process))]

    def words_of(self, process: psutil.Process) -> str:
        """A process of the daemon's, by what it is."""
        words = _words(process)
        at = next((i for i, word in enumerate(words) if word.startswith("sidestep.")), None)
        if at is None:
            return f"pid {process.pid}"
        name = words[at].removeprefix("sidestep.sidecar.")
        sink = f" {words[at + 1]}" if name == "worker" and at + 1 < len(words) else ""
        return f"{name}{sink}, pid {process.pid}"

    # --- the end -----------------------------------------------------------------------------

    def heal(self) -> None:
        """Every disk is well again."""
        for disk in self._disks.values():
            disk.heal()

    def keep(self, folder: Path) -> None:
        """Copy all there is to look at to `folder`."""
        ignore = "filler-*", "*.outbox"
        subprocess.run(
            ["cp", "-r", "--sparse=always", f"{self.sandbox.root}/.", str(folder)],
            check=False,
            timeout=300,
        )
        for pattern in ignore:
            for path in folder.rglob(pattern):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """End everything, unmount, remove."""
        self.troupe.close()
        for one in self._starting:
            with suppress(subprocess.TimeoutExpired):
                one.wait(30)
        with redirect_stdout(io.StringIO()):  # it prints the logs, which are kept if need be
            self.sandbox.close()
        for disk in self._disks.values():
            disk.close()
        subprocess.run(["rm", "-rf", str(self.sandbox.root)], check=False, timeout=60)


def _words(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def _is_helper(words: list[str]) -> bool:
    return any(word.startswith(_HELPERS) for word in words)

"""Runs pieces of work in processes of their own, which may hang, crash or be killed.

A path on a dead file server, a driver that never returns, a library that ends the process: each
costs the one piece that met it. A piece says what it is at (`doing`), so that one that hangs can
be named. What it returns comes back as JSON.

    fork ─► works ─► answer
              │ no sign of life and no CPU time for `stall_s`, or longer than `most_s` in all
              └─► killed; what it was at is reported
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

_LOOK_S: Final = 0.05
_PIECE_BYTES: Final = 1 << 16
_MOST_BYTES: Final = 64 << 20

_out: list[int] = []  # in a child: the pipe to its parent


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a piece of work.

    Attributes:
        value: what it returned; None when it did not come to an end.
        problem: why not, in words; "" when it did.
        parts: what it has told on its way, also when it never came to its end.
    """

    value: Any = None
    problem: str = ""
    parts: Sequence[Any] = ()


def doing(what: str) -> None:
    """Say what this piece of work is at; does nothing outside of one."""
    if _out:
        _send(_out[0], {"at": what})


def tell(part: object) -> None:
    """Say a part of the answer at once: it is kept, whatever becomes of the rest."""
    if _out:
        _send(_out[0], {"part": part})


def run_all(
    pieces: Mapping[str, Callable[[], object]], stall_s: float, most_s: float
) -> dict[str, Outcome]:
    """Run all pieces at once.

    Args:
        pieces: by their names; each returns something that JSON can hold.
        stall_s: one that says nothing and needs no CPU for so long is given up.
        most_s: one that takes longer is given up in any case.

    Returns:
        What became of each, in the same order.
    """
    children: dict[str, _Child] = {}
    outcomes: dict[str, Outcome] = {}
    try:
        for name, work in pieces.items():
            try:
                children[name] = _start(work, most_s)
            except OSError as error:
                outcomes[name] = Outcome(problem=f"no process could be started: {error}")
        _listen(list(children.values()), stall_s, most_s)
    finally:
        for name, child in children.items():
            outcomes[name] = child.end()
    return {name: outcomes[name] for name in pieces}


@dataclass(slots=True)
class _Child:
    """A process and what it has said so far."""

    pid: int
    fd: int
    began: float
    heard: float
    cpu: int = 0
    at: str = ""
    gone: str = ""
    over: bool = False
    said: bytearray = field(default_factory=bytearray)
    parts: list[Any] = field(default_factory=list[Any])
    outcome: Outcome | None = None

    def hear(self, now: float) -> None:
        """Its pipe is readable."""
        piece = os.read(self.fd, _PIECE_BYTES)
        self.heard = now
        self.said += piece
        *lines, rest = self.said.split(b"\n")
        self.said = bytearray(rest)
        for line in lines:
            self._take(line)
        if len(self.said) > _MOST_BYTES:
            self.gone = "it says too much"
        if not piece:
            self.over = True

    def _take(self, line: bytes | bytearray) -> None:
        said = json.loads(line)
        if "at" in said:
            self.at = str(said["at"])
        elif "part" in said:
            self.parts.append(said["part"])
        elif "value" in said:
            self.outcome, self.over = Outcome(said["value"]), True
        else:
            self.outcome, self.over = Outcome(problem=str(said["problem"])), True

    def look(self, now: float, stall_s: float, most_s: float) -> None:
        """Give it up if it has hung for too long."""
        cpu, is_waiting_for_cpu = _life_of(self.pid)
        if cpu != self.cpu or is_waiting_for_cpu:
            self.cpu, self.heard = cpu, now
        where = f" (at: {self.at})" if self.at else ""
        if now - self.began > most_s:
            self.gone = f"it was not done after {most_s:g} s{where}"
        elif now - self.heard > stall_s:
            self.gone = f"it hangs: no sign of life for {stall_s:g} s{where}"

    def end(self) -> Outcome:
        """Kill it, whatever it does; what became of it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.fd)
        # One that sits in the kernel dies when the kernel lets go of it: not waited for.
        _, status = os.waitpid(self.pid, 0 if self.over else os.WNOHANG)
        return replace(self._judged(status), parts=self.parts)

    def _judged(self, status: int) -> Outcome:
        if self.outcome is not None:
            return self.outcome
        if self.gone:
            return Outcome(problem=self.gone)
        where = f" (at: {self.at})" if self.at else ""
        number = os.waitstatus_to_exitcode(status)
        how = signal.Signals(-number).name if number < 0 else f"code {number}"
        return Outcome(problem=f"its process ended without an answer, {how}{where}")


def _start(work: Callable[[], object], most_s: float) -> _Child:
    reading, writing = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if pid == 0:
        os.close(reading)
        _work(work, writing, most_s)
    os.close(writing)
    now = time.monotonic()
    return _Child(pid, reading, now, now)


def _work(work: Callable[[], object], fd: int, most_s: float) -> None:
    """The child's whole life. It never returns, so that nothing of its parent's is done twice."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(most_s) + 2)  # should the parent be killed
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):  # what libraries print is nobody's
            os.dup2(null, standard)
        _out[:] = [fd]
        try:
            answer: dict[str, object] = {"value": work()}
            json.dumps(answer)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is said
            answer = {"problem": f"it failed itself: {type(error).__name__}: {error}"}
        _send(fd, answer)
    finally:
        os._exit(0)


def _send(fd: int, message: Mapping[str, object]) -> None:
    data = memoryview(json.dumps(dict(message)).encode() + b"\n")
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(fd, data) :]


def _listen(children: list[_Child], stall_s: float, most_s: float) -> None:
    poller = select.poll()
    for child in children:
        poller.register(child.fd, select.POLLIN)
    living = {child.fd: child for child in children}
    while living:
        for fd, _ in poller.poll(_LOOK_S * 1000):
            living[fd].hear(time.monotonic())
        now = time.monotonic()
        for fd, child in list(living.items()):
            if not child.over:
                child.look(now, stall_s, most_s)
            if child.over or child.gone:
                poller.unregister(fd)
                del living[fd]


def _life_of(pid: int) -> tuple[int, bool]:
    """Time that a process has spent on a CPU, and whether it wants one; 0 and no when unknown."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[11]) + int(fields[12]), fields[0] == b"R"
    except (OSError, ValueError, IndexError):
        return 0, False

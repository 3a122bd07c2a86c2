"""The trainers of a chaos run: one process in each part's place, and all that came before it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tests.support.sandbox import ROOT, Sandbox
from tests.support.trainer import CONNECTED, Record

from .part import ENDS, MAX_EMITS, Part

FINISH_S: Final = 2.0
_CONNECT_S: Final = 60.0
_EXPECTED: Final = {"finish": 0, "return": 0, "raise": 1, "exit": 3, "abort": 0}


class Actor:
    """One trainer process."""

    def __init__(
        self, sandbox: Sandbox, slot: int, attempt: int, part: Part, finish_s: float
    ) -> None:
        self.slot, self.attempt, self.part = slot, attempt, part
        self.path = sandbox.root / f"trainer-{slot}.{attempt}.record"
        self.record = Record(str(self.path), MAX_EMITS)
        self.log = sandbox.root / f"trainer-{slot}.{attempt}.log"
        self.ordered = ""
        self.signalled: set[int] = set()
        self.stopped = False
        arguments = [str(slot), str(attempt), str(self.path), str(finish_s)]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.runner.trainer", *arguments]
                + [json.dumps(asdict(part))],
                cwd=ROOT,
                env=sandbox.env(PYTHONWARNINGS="ignore::DeprecationWarning"),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def __str__(self) -> str:
        return f"trainer {self.slot}.{self.attempt} (run {self.part.run})"

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    @property
    def connected(self) -> bool:
        """Whether `connect` has returned."""
        return self.record["state"] >= CONNECTED

    def signal(self, number: int) -> None:
        """Send it a signal; one that ends it is remembered."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        self.stopped = self.stopped or number == signal.SIGSTOP
        if number not in (signal.SIGSTOP, signal.SIGCONT):
            self.signalled.add(number)

    def order(self, end: str) -> None:
        """Have it end, in the way of `part.ENDS`."""
        if not self.ordered:
            self.ordered = end
            self.record["release"] = ENDS.index(end) + 1

    def trouble(self) -> str | None:
        """What is wrong with how it ended; None when it ended as it was told to."""
        code = self.process.poll()
        if code is None:
            return "does not end"
        wanted = {-number for number in self.signalled}
        if self.ordered:
            wanted.add(_EXPECTED[self.ordered])
        if code in wanted:
            return None
        said = self.log.read_text(errors="replace")[-1500:]
        return f"ended with {code}, not with one of {sorted(wanted)}:\n{said}"

    def stats(self) -> dict[str, int] | None:
        """The client's own books at its end, if it came so far."""
        path = Path(f"{self.path}.json")
        return json.loads(path.read_text()) if path.exists() else None

    def latencies_ms(self) -> list[float]:
        """How long each emit took."""
        return [wall / 1e6 for wall, _ in self.record.durations_ns()]


class Troupe:
    """All trainers, the present ones and the past."""

    def __init__(self, sandbox: Sandbox, cast: tuple[Part, ...]) -> None:
        self._sandbox = sandbox
        self._cast = cast
        self.all: list[Actor] = []
        self.now: list[Actor] = []
        self.closing = False

    def begin(self) -> None:
        """Start all, and wait until all train."""
        self.now = [self._start(slot, 0) for slot in range(len(self._cast))]
        deadline = time.monotonic() + _CONNECT_S
        while not all(actor.connected for actor in self.now):
            for actor in self.now:
                assert actor.alive, f"{actor}: {actor.trouble()}"
            assert time.monotonic() < deadline, "not all trainers have connected"
            time.sleep(0.01)

    def _start(self, slot: int, attempt: int) -> Actor:
        self.all.append(Actor(self._sandbox, slot, attempt, self._cast[slot], FINISH_S))
        return self.all[-1]

    def replace_the_dead(self) -> None:
        """A new trainer in the place of each that has ended."""
        for slot, actor in enumerate(self.now):
            if not actor.alive and not self.closing:
                self.now[slot] = self._start(slot, actor.attempt + 1)

    def end(self, ends: tuple[str, ...], timeout_s: float) -> None:
        """Tell all to end, and wait for it."""
        self.closing = True
        for actor, end in zip(self.now, ends, strict=True):
            actor.order(end)
        deadline = time.monotonic() + timeout_s
        while any(actor.alive for actor in self.now) and time.monotonic() < deadline:
            time.sleep(0.02)

    def close(self) -> None:
        """End all processes, let go of all memory."""
        for actor in self.all:
            if actor.alive:
                actor.process.kill()
            actor.process.wait(30)
            actor.record.close()

    def summary(self) -> dict[str, Any]:
        """How many there were, what they did."""
        # A trainer that is to wait for room does, and one that was stopped by us does too.
        those = [a for a in self.all if a.part.on_full == "drop" and not a.stopped]
        times = [ms for actor in those for ms in actor.latencies_ms()]
        return {
            "trainers": len(self.all),
            "emits": sum(actor.record["returned"] for actor in self.all),
            "over_5_ms": sum(ms > 5 for ms in times),
            "worst_ms": max(times, default=0.0),
        }

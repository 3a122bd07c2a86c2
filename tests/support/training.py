"""The test's end of a trainer process: starts it, watches and ends it, knows what it emitted."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .oracle import Point, points
from .sandbox import ROOT, Sandbox
from .trainer import CONNECTED, Plan, Record
from .waiting import wait_until

START_S = 60.0


class Training:
    """A trainer process in a sandbox. What is left out of its plan is as in `Plan`."""

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        limit: int = 0,
        env: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        **plan: Any,
    ) -> None:
        number = len(list(sandbox.root.glob("trainer-*.log")))
        self.plan = Plan(record=str(sandbox.root / f"trainer-{number}.record"), **plan)
        self.record = Record(self.plan.record, self.plan.emits)
        self.record["limit"] = limit
        self.log = sandbox.root / f"trainer-{number}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [
                    *prefix,
                    *(sys.executable, "-m", "tests.support.trainer"),
                    json.dumps(asdict(self.plan)),
                ],
                cwd=ROOT,
                env=sandbox.env(**(env or {})),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    # --- how far it is -----------------------------------------------------------------------

    def await_connected(self) -> None:
        """Wait until `connect` has returned."""
        self._await(lambda: self.record["state"] >= CONNECTED, "connected")

    def await_begun(self, emits: int, timeout_s: float = START_S) -> None:
        """Wait until so many emits have begun; looks often, to be there when it happens."""
        deadline = time.monotonic() + timeout_s
        while self.record["begun"] < emits:
            assert self.process.poll() is None, f"the trainer has ended:\n{self.said()}"
            assert time.monotonic() < deadline, f"{self.record['begun']} of {emits} emits"
            time.sleep(0.0001)

    def await_state(self, state: int) -> None:
        """Wait until it has come so far."""
        self._await(lambda: self.record["state"] >= state, f"state {state}")

    def _await(self, condition: Any, what: str) -> None:
        wait_until(
            lambda: condition() or self.process.poll() is not None, START_S, f"trainer not {what}"
        )
        assert condition(), f"the trainer has ended, not {what}:\n{self.said()}"

    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    # --- its end -------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(START_S)

    def wait(self, timeout_s: float = START_S) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(timeout_s)
        print(f"{self.plan.run}: {self.latency()}")
        return code

    def finished(self, timeout_s: float = START_S) -> dict[str, Any]:
        """Wait for its good end; what `finish` returned and the client's books after it."""
        assert self.wait(timeout_s) == 0, self.said()
        found: dict[str, Any] = json.loads(Path(f"{self.plan.record}.json").read_text())
        return found

    def stats_before_finish(self) -> dict[str, int]:
        """The client's books right after the last emit."""
        found: dict[str, int] = json.loads(Path(f"{self.plan.record}.emitted.json").read_text())
        return found

    # --- what it did ---------------------------------------------------------------------------

    @property
    def returned(self) -> int:
        """Emits that have returned."""
        return self.record["returned"]

    @property
    def begun(self) -> int:
        """Emits that were begun: those, and perhaps one more."""
        return self.record["begun"]

    def emitted(self, emits: int | None = None) -> Counter[Point]:
        """The numbers of all emits that returned, or of the first `emits`."""
        return points(self.plan.rows(self.returned if emits is None else emits))

    def worst_ms(self, first: int = 0, last: int | None = None) -> float:
        """The longest emit among these."""
        return max((wall for wall, _ in self.record.durations_ns(first, last)), default=0) / 1e6

    def over(self, limit_ms: float, first: int = 0, last: int | None = None) -> list[float]:
        """The emits among these that took longer than so many milliseconds: how long."""
        times = [wall / 1e6 for wall, _ in self.record.durations_ns(first, last)]
        return [ms for ms in times if ms > limit_ms]

    def latency(self, first: int = 0, last: int | None = None) -> str:
        """Mean, p99 and worst emit among these, in words."""
        times = sorted(wall / 1e3 for wall, _ in self.record.durations_ns(first, last))
        if not times:
            return "no emit"
        mean, p99 = sum(times) / len(times), times[int(len(times) * 0.99)]
        worst = self.record.durations_ns(first, last)
        wall, cpu = max(worst)
        return (
            f"{len(times)} emits: mean {mean:.1f} µs, p99 {p99:.0f} µs, "
            f"worst {wall / 1e6:.2f} ms (of that {cpu / 1e6:.2f} ms on the CPU)"
        )

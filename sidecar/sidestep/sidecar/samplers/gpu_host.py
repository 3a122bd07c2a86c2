"""The daemon's end of the GPU sampler: starts its process, kills it when it hangs, starts it again.

The process samples and says what it saw; all decisions are here, driven by the daemon's main loop,
which polls `fileno()` and calls `tick` about once a second. Nothing here waits, and nothing raises.

                      message                      silence, or an error that stays
    start ─► starting ───────► running ──────────────────────────────► killed
               ▲  └──────────────┴─── exited ───┐                        │ dead
               └──── after a while ─── waiting, unavailable ◄────────────┘

- *silence*: a call hangs in the driver. A process that sits in the kernel dies only when the driver
  lets go of it; until then it is `killed`, and no second one is sent after it.
- *an error that stays*: a GPU is lost, the driver was reloaded. Only a fresh process is sure to
  see what is there now (and loads the new driver's library), so it is replaced after a while. The
  other GPUs are sampled until then.
- *unavailable*: no driver, no library. This is how most machines are; it is looked at again rarely.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from .gpu import EXIT_NO_NVML
from .gpu_sample import GpuSample, parse_sample

MAX_MESSAGE_BYTES = 1 << 20  # far more than the socket's buffer, and so than any packet
MIN_DEADLINE_S = 5.0
# Without persistence mode the first call wakes up each GPU, which takes seconds for each. A start
# that was too slow for its deadline gets twice the time when it is tried again.
MIN_START_DEADLINE_S = 10.0
MAX_START_DEADLINE_S = 120.0
KILL_WAIT_S = 1.0

STOPPED, STARTING, RUNNING = "stopped", "starting", "running"
KILLED, WAITING, UNAVAILABLE = "killed", "waiting", "unavailable"


class _Backoff:
    """Delays that double from `first_s` to `most_s`, until things are well again."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = self._next_s = first_s
        self._most_s = most_s

    def next(self) -> float:
        delay_s = self._next_s
        self._next_s = min(2 * delay_s, self._most_s)
        return delay_s

    def reset(self) -> None:
        self._next_s = self._first_s


class GpuSampler:
    """Samples all GPUs every `interval_s`, in a process that may hang and die.

    Args:
        interval_s: seconds between two samples.
        deadline_s: silence after which the process is killed; three intervals, at least 5 s.
        start_deadline_s: the same before the first message; 10 s, and longer after a failure.
        retry_s: first and longest delay before a process that hung, died or saw a lost GPU is
            replaced.
        missing_retry_s: the same where there is no NVML.
        settled_s: so long without an error makes the delays short again.
        env: the process's environment; the daemon's own by default.
        clock: monotonic seconds.
        popen: starts the process.
    """

    def __init__(
        self,
        interval_s: float = 2.0,
        *,
        deadline_s: float | None = None,
        start_deadline_s: float | None = None,
        retry_s: tuple[float, float] = (1.0, 300.0),
        missing_retry_s: tuple[float, float] = (15.0, 300.0),
        settled_s: float = 60.0,
        env: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        popen: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen,
    ) -> None:
        self._interval_s = interval_s
        self._deadline_s = deadline_s or max(3 * interval_s, MIN_DEADLINE_S)
        self._start_deadline_s = start_deadline_s or max(self._deadline_s, MIN_START_DEADLINE_S)
        self._retry = _Backoff(*retry_s)
        self._missing_retry = _Backoff(*missing_retry_s)
        self._settled_s = settled_s
        self._env = env
        self._clock = clock
        self._popen = popen

        self._state = STOPPED
        self._sockets: tuple[socket.socket, socket.socket] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self._error: str | None = None
        self._last: GpuSample | None = None
        self._heard_at = 0.0  # the process's last message, or its start
        self._well_since: float | None = None  # no error since then
        self._retry_at = 0.0  # when to start the next process, once there is none
        self._replace_at: float | None = None  # when to replace this one, which reports an error

    def fileno(self) -> int:
        """The socket to poll for reading, the same for all processes; -1 when not started."""
        return -1 if self._sockets is None else self._sockets[0].fileno()

    def start(self) -> None:
        """Start sampling. What cannot be had now (a process, a socket), `tick` tries again."""
        if self._sockets is not None:
            return
        try:
            # Packets: a killed process leaves no half message behind, so that all its successors
            # can use the same socket. That we keep their end too does not hide our own death.
            self._sockets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as problem:
            text = f"no socket for the GPU sampler: {problem}"
            self._wait(text, self._clock() + self._retry.next())
            return
        self._sockets[0].setblocking(False)
        self._spawn(self._sockets[1].fileno(), self._clock())

    def stop(self) -> None:
        """Kill the process and free everything; waits a second at most. Idempotent."""
        if self._process is not None:
            self._process.kill()
            try:
                self._process.wait(KILL_WAIT_S)
            except subprocess.TimeoutExpired:
                pass  # inside the driver: it goes when the driver lets it
        for end in self._sockets or ():
            end.close()
        self._sockets = self._process = self._last = None
        self._state = STOPPED

    def on_readable(self) -> list[GpuSample]:
        """The samples that have come, oldest first; call it when `fileno()` is readable."""
        samples: list[GpuSample] = []
        while self._sockets is not None:
            try:
                data = self._sockets[0].recv(MAX_MESSAGE_BYTES)
            except OSError:  # nothing left
                break
            try:
                sample = parse_sample(data)
            except ValueError as problem:
                self._kill(str(problem), self._clock() + self._retry.next())
                continue
            samples.append(sample)
            self._heard(sample, self._clock())
        return samples

    def tick(self, now: float | None = None) -> None:
        """Look after the process: kill it when it hangs, start the next one when it is time."""
        now = self._clock() if now is None else now
        if self._sockets is None:
            if self._state == WAITING and now >= self._retry_at:
                self.start()
            return
        if self._process is not None:
            self._look_after(self._process, now)
        if self._process is None and now >= self._retry_at:
            self._restarts += 1
            self._spawn(self._sockets[1].fileno(), now)

    def status(self) -> dict[str, Any]:
        """The state, for `sidestep status`.

        `gpus` holds the last sample while it holds; its values are those of `gpu_sample.Gpu`.
        """
        now = self._clock()
        waits = self._state in {WAITING, UNAVAILABLE}
        sample = self._last if self._state == RUNNING else None
        return {
            "state": self._state,
            "error": self._error,
            "pid": None if self._process is None else self._process.pid,
            "restarts": self._restarts,
            "retry_in_s": max(0.0, self._retry_at - now) if waits else None,
            "time_ns": None if sample is None else sample.time_ns,
            "gpus": [
                {
                    "index": gpu.index,
                    "uuid": gpu.uuid,
                    "name": gpu.name,
                    "parent": gpu.parent,
                    "values": dict(gpu.values),
                }
                for gpu in (() if sample is None else sample.gpus)
            ],
        }

    def _spawn(self, fd: int, now: float) -> None:
        module = f"{__package__}.gpu"
        try:
            self._process = self._popen(
                # -P: no module of the working directory takes the place of one of the library's.
                [sys.executable, "-P", "-m", module, str(fd), str(self._interval_s)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(fd,),
                env=None if self._env is None else dict(self._env),
            )
        except OSError as problem:
            self._wait(f"the GPU sampler does not start: {problem}", now + self._retry.next())
            return
        self._state = STARTING
        self._heard_at = now
        self._well_since = self._replace_at = None

    def _look_after(self, process: subprocess.Popen[bytes], now: float) -> None:
        code = process.poll()
        if code is not None:
            self._exited(code, now)
        elif self._state == KILLED:
            return
        elif self._silent(now):
            if self._state == STARTING:
                longer_s = min(2 * self._start_deadline_s, MAX_START_DEADLINE_S)
                self._start_deadline_s = max(longer_s, self._start_deadline_s)
            text = f"NVML did not answer for {now - self._heard_at:.1f} s"
            self._kill(text, now + self._retry.next())
        elif self._replace_at is not None and now >= self._replace_at:
            self._kill(self._error or "", now)

    def _heard(self, sample: GpuSample, now: float) -> None:
        if self._state not in {STARTING, RUNNING}:
            # The last words of a process that was killed or has ended: true, but no sign of life.
            self._error = sample.error or self._error
            return
        self._state = RUNNING
        self._heard_at = now
        self._last = sample
        self._error = sample.error
        if sample.error is not None:
            self._well_since = None
            if self._replace_at is None:
                self._replace_at = now + self._retry.next()
            return
        self._replace_at = None
        self._well_since = now if self._well_since is None else self._well_since
        if now - self._well_since >= self._settled_s:
            self._retry.reset()
            self._missing_retry.reset()

    def _silent(self, now: float) -> bool:
        """Whether the process has missed its deadline: not where it is us who did not listen."""
        limit_s = self._start_deadline_s if self._state == STARTING else self._deadline_s
        if now - self._heard_at <= limit_s or self._sockets is None:
            return False
        try:
            self._sockets[0].recv(1, socket.MSG_PEEK)
        except OSError:
            return True
        return False

    def _kill(self, why: str, retry_at: float) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._state = KILLED
        self._error = why
        self._retry_at = retry_at
        self._last = None

    def _exited(self, code: int, now: float) -> None:
        was, self._process, self._last = self._state, None, None
        if was == KILLED:
            self._state = WAITING
        elif code == EXIT_NO_NVML:
            self._state = UNAVAILABLE
            self._retry_at = now + self._missing_retry.next()
        else:
            self._wait(f"the GPU sampler {_how(code)}", now + self._retry.next())

    def _wait(self, why: str, retry_at: float) -> None:
        self._state = WAITING
        self._error = why
        self._retry_at = retry_at


def _how(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"

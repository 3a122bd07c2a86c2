"""What is decided about the GPU sampler's process: when it is killed, when it is started again."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from sidestep.sidecar.samplers.gpu import EXIT_NO_NVML
from sidestep.sidecar.samplers.gpu_host import GpuSampler
from sidestep.sidecar.samplers.gpu_sample import parse_sample
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Processes:
    """Stands in for `subprocess.Popen`; the one process it made last does as it is told."""

    def __init__(self) -> None:
        self.count = 0
        self.pid = 0
        self.code: int | None = None
        self.killed = False
        self.immortal = False
        self.fails = False
        self.socket: socket.socket | None = None

    def __call__(self, command: list[str], pass_fds: tuple[int], **_: Any) -> Processes:
        if self.fails:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        self.count += 1
        self.pid += 1
        self.code, self.killed = None, False
        self.close()
        self.socket = socket.socket(fileno=os.dup(pass_fds[0]))
        return self

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()

    def say(self, error: str | None = None, gpus: tuple[Any, ...] = ()) -> None:
        self.send(msgpack.packb({"time_ns": 1, "gpus": gpus, "error": error}))

    def send(self, data: bytes) -> None:
        assert self.socket is not None
        self.socket.send(data)

    def poll(self) -> int | None:
        return -signal.SIGKILL if self.killed and not self.immortal else self.code

    def kill(self) -> None:
        self.killed = True

    def wait(self, timeout: float) -> int:
        if self.immortal:
            raise subprocess.TimeoutExpired("gpu", timeout)
        return -signal.SIGKILL


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.close()


@pytest.fixture
def sampler(clock: Clock, processes: Processes) -> Iterator[GpuSampler]:
    popen: Any = processes
    made = GpuSampler(2.0, clock=clock, popen=popen)
    made.start()
    yield made
    made.stop()


def advance(sampler: GpuSampler, clock: Clock, seconds: float) -> None:
    for _ in range(round(seconds * 10)):
        clock.now += 0.1
        sampler.tick()


def test_silence_is_counted_from_the_last_message(
    sampler: GpuSampler, clock: Clock, processes: Processes
) -> None:
    for _ in range(20):
        advance(sampler, clock, 5)
        processes.say()
        assert len(sampler.on_readable()) == 1
    assert processes.count == 1
    assert not processes.killed
    advance(sampler, clock, 6.5)  # three intervals
    assert sampler.status()["error"].startswith("NVML did not answer for 6.")


def test_a_process_in_the_kernel_is_not_followed_by_another(
    sampler: GpuSampler, clock: Clock, processes: Processes
) -> None:
    processes.immortal = True
    advance(sampler, clock, 3600)
    assert processes.killed
    assert processes.count == 1
    assert sampler.status()["state"] == "killed"
    processes.immortal = False
    advance(sampler, clock, 1)
    assert processes.count == 2


def test_stop_does_not_wait_for_a_process_in_the_kernel(
    sampler: GpuSampler, processes: Processes
) -> None:
    processes.immortal = True
    sampler.stop()
    assert sampler.status()["state"] == "stopped"


def test_messages_that_wait_are_a_sign_of_life(
    sampler: GpuSampler, clock: Clock, processes: Processes
) -> None:
    processes.say()
    clock.now += 60  # the daemon was stopped, not the sampler
    sampler.tick()
    assert not processes.killed
    assert len(sampler.on_readable()) == 1
    advance(sampler, clock, 5)
    assert not processes.killed


def test_a_start_that_was_too_slow_gets_more_time(
    sampler: GpuSampler, clock: Clock, processes: Processes
) -> None:
    lives: list[float] = []
    while len(lives) < 6:
        began, number = clock.now, processes.count
        while not processes.killed:
            advance(sampler, clock, 0.1)
        lives.append(round(clock.now - began))
        while processes.count == number:
            advance(sampler, clock, 0.1)
    assert lives == [10, 20, 40, 80, 120, 120]


def test_no_nvml_is_looked_for_ever_more_rarely(
    sampler: GpuSampler, clock: Clock, processes: Processes
) -> None:
    delays: list[float] = []
    for _ in range(8):
        processes.say("NVML Shared Library Not Found")
        processes.code = EXIT_NO_NVML
        sampler.on_readable()
        sampler.tick()
        assert sampler.status()["state"] == "unavailable"
        assert sampler.status()["error"] == "NVML Shared Library Not Found"
        delays.append(sampler.status()["retry_in_s"])
        advance(sampler, clock, delays[-1] + 0.2)
    assert delays == pytest.approx([15, 30, 60, 120, 240, 300, 300, 300])
    assert processes.count == 9


def test_a_crash_loop_slows_down_until_all_is_well(
    sampler: GpuSampler, clock: Clock, processes: Processes
) -> None:
    def crash() -> float:
        processes.code = 1
        sampler.tick()
        status = sampler.status()
        assert status["error"] == "the GPU sampler ended with exit code 1"
        delay = float(status["retry_in_s"])
        advance(sampler, clock, delay + 0.2)
        return delay

    assert [crash() for _ in range(10)] == pytest.approx([2**k for k in range(9)] + [300])
    for _ in range(40):
        processes.say()
        sampler.on_readable()
        advance(sampler, clock, 2)
    assert crash() == pytest.approx(1)


def test_a_lasting_error_replaces_the_process_ever_more_rarely(
    sampler: GpuSampler, clock: Clock, processes: Processes
) -> None:
    began: list[float] = []
    while processes.count < 5:
        if len(began) < processes.count:
            began.append(clock.now)
        processes.say("GPU 0: GPU is lost")
        sampler.on_readable()
        advance(sampler, clock, 0.2)
    lives = [b - a for a, b in itertools.pairwise(began)]
    assert lives == pytest.approx([1, 2, 4], abs=0.5)


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\x93",
        msgpack.packb(7),
        msgpack.packb({}),
        msgpack.packb({"time_ns": None, "gpus": [], "error": None}),
        msgpack.packb({"time_ns": 1, "gpus": [{"index": 0}], "error": None}),
        msgpack.packb({"time_ns": 1, "gpus": 7, "error": None}),
        msgpack.packb(
            {
                "time_ns": 1,
                "gpus": [{"index": 0, "uuid": "", "name": "", "values": {"power_w": "much"}}],
                "error": None,
            }
        ),
    ],
)
def test_a_message_that_is_none_costs_the_process(
    sampler: GpuSampler, clock: Clock, processes: Processes, data: bytes
) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_sample(data)
    processes.send(data)
    assert sampler.on_readable() == []
    assert processes.killed
    advance(sampler, clock, 2)
    assert processes.count == 2


def test_a_process_that_cannot_be_started_is_tried_again(
    clock: Clock, processes: Processes
) -> None:
    processes.fails = True
    popen: Any = processes
    sampler = GpuSampler(2.0, clock=clock, popen=popen)
    sampler.start()
    status = sampler.status()
    assert status["state"] == "waiting"
    assert "Resource temporarily unavailable" in status["error"]
    processes.fails = False
    advance(sampler, clock, 2)
    assert processes.count == 1
    sampler.stop()


def test_a_socket_that_cannot_be_had_is_tried_again(
    clock: Clock, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(24, "Too many open files")

    popen: Any = processes
    sampler = GpuSampler(2.0, clock=clock, popen=popen)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socketpair", refuse)
        sampler.start()
        assert "Too many open files" in sampler.status()["error"]
        assert sampler.fileno() == -1
    advance(sampler, clock, 2)
    assert processes.count == 1
    sampler.stop()
    advance(sampler, clock, 2)
    assert processes.count == 1

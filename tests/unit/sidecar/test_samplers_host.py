"""The host and the trainers' processes, as measured from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil
import pytest

from sidestep.sidecar.samplers import host
from sidestep.sidecar.samplers.host import HostSampler
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


RATES = {
    "system/cpu_percent",
    "system/disk_read_mb_s",
    "system/disk_write_mb_s",
    "system/network_sent_mb_s",
    "system/network_recv_mb_s",
}
MEMORY = {"system/memory_used_gb", "system/memory_percent"}


def test_this_host_is_measured(clock: Clock) -> None:
    host_sampler = HostSampler(clock)
    first = host_sampler.sample()
    assert first.keys() == MEMORY
    assert 0 < first["system/memory_percent"] < 100
    sum(range(300_000))  # some ticks of the CPU's clock
    clock.now += 1
    second = host_sampler.sample()
    assert second.keys() <= MEMORY | RATES
    assert all(value >= 0 for value in second.values())


class Cpu(NamedTuple):
    user: float
    system: float
    idle: float
    iowait: float
    guest: float


def test_cpu_percent_counts_guests_once_and_waiting_not(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([Cpu(10, 5, 80, 5, 10), Cpu(40, 10, 130, 20, 40)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(times))
    host_sampler = HostSampler()
    assert "system/cpu_percent" not in host_sampler.sample()
    # 30 more of user, all of it guests, and 5 of system; 50 idle and 15 waiting.
    assert host_sampler.sample()["system/cpu_percent"] == pytest.approx(35)


def machine(root: Path, block: dict[str, bool], net: dict[str, bool]) -> Path:
    """A /sys with these disks and network cards, with hardware or without."""
    for folder, devices in ((root / "block", block), (root / "class" / "net", net)):
        for name, hardware in devices.items():
            (folder / name).mkdir(parents=True)
            if hardware:
                (folder / name / "device").symlink_to("/nowhere")
    return root


def counted(monkeypatch: pytest.MonkeyPatch, disks: dict[str, Any], net: dict[str, Any]) -> None:
    def io(**names: int) -> Any:
        return SimpleNamespace(**names)

    monkeypatch.setattr(
        psutil,
        "disk_io_counters",
        lambda **_: {k: io(read_bytes=v[0], write_bytes=v[1]) for k, v in disks.items()},
    )
    monkeypatch.setattr(
        psutil,
        "net_io_counters",
        lambda **_: {k: io(bytes_sent=v[0], bytes_recv=v[1]) for k, v in net.items()},
    )


def rates_of(sample: dict[str, float]) -> list[float | None]:
    tags = ("disk_read", "disk_write", "network_sent", "network_recv")
    return [sample.get(f"system/{tag}_mb_s") for tag in tags]


def test_bytes_are_counted_where_they_leave_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Clock
) -> None:
    sys_folder = machine(
        tmp_path,
        block={"sda": True, "dm-0": False, "md0": False, "loop0": False, "zram0": False},
        net={"eth0": True, "lo": False, "docker0": False, "veth1": False, "bond0": False},
    )
    host_sampler = HostSampler(clock, sys_folder)
    zero = (0, 0)
    counted(monkeypatch, dict.fromkeys(("sda", "sda1", "dm-0"), zero), {"eth0": zero, "lo": zero})
    assert rates_of(host_sampler.sample()) == [None] * 4

    clock.now += 2
    much = (10**9, 10**9)
    counted(
        monkeypatch,
        {"sda": (4_000_000, 6_000_000), "sda1": much, "dm-0": much},
        {"eth0": (1_000_000, 500_000), "lo": much},
    )
    assert rates_of(host_sampler.sample()) == [2.0, 3.0, 0.5, 0.25]


def test_devices_that_come_go_or_start_anew_make_no_spike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Clock
) -> None:
    sys_folder = machine(tmp_path, {"sda": True, "sdb": True, "sdc": True}, {"eth0": True})
    host_sampler = HostSampler(clock, sys_folder)
    big = (10**12, 10**12)
    counted(monkeypatch, {"sda": big, "sdb": big}, {"eth0": big})
    host_sampler.sample()
    clock.now += 1
    counted(monkeypatch, {"sda": (10**12 + 10**6, 10**12), "sdc": big}, {"eth0": (5, 5)})
    assert rates_of(host_sampler.sample()) == [1.0, 0.0, 0.0, 0.0]


def test_a_container_counts_its_virtual_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Clock
) -> None:
    host_sampler = HostSampler(clock, machine(tmp_path, {}, {"eth0": False, "lo": False}))
    counted(monkeypatch, {"sda": (0, 0)}, {"eth0": (0, 0), "lo": (0, 0)})
    host_sampler.sample()
    clock.now += 1
    counted(monkeypatch, {"sda": (9, 9)}, {"eth0": (3_000_000, 0), "lo": (9, 9)})
    assert rates_of(host_sampler.sample()) == [None, None, 3.0, 0.0]


@pytest.mark.parametrize(
    "problem", [FileNotFoundError(2, "/proc"), NotImplementedError(), psutil.AccessDenied(1)]
)
def test_what_proc_does_not_show_is_absent(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, problem: Exception
) -> None:
    def refuse(**_: object) -> None:
        raise problem

    host_sampler = HostSampler(clock)
    host_sampler.sample()
    clock.now += 1
    monkeypatch.setattr(psutil, "disk_io_counters", refuse)
    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_: None)
    assert host_sampler.sample().keys() <= {"system/cpu_percent"}


# --- processes ------------------------------------------------------------------------------------


def test_a_process_is_measured(clock: Clock) -> None:
    host_sampler = HostSampler(clock)
    first = host_sampler.process_sample(os.getpid())
    assert first.keys() == {"system/process_rss_gb", "system/process_threads"}
    assert 0.005 < first["system/process_rss_gb"] < 50
    assert first["system/process_threads"] >= 1

    host_sampler._watched[os.getpid()].cpu_s -= 3
    clock.now += 2
    second = host_sampler.process_sample(os.getpid())
    assert second["system/process_cpu_percent"] == pytest.approx(150, abs=10)


def test_a_process_that_ends_is_absent_at_once_and_for_good() -> None:
    host_sampler = HostSampler()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    assert host_sampler.process_sample(child.pid)
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert host_sampler.process_sample(child.pid) == {}  # a zombie
    child.wait()
    assert host_sampler.process_sample(child.pid) == {}
    assert not host_sampler._watched


@pytest.mark.parametrize("pid", [-1, 2**22 + 1, 2**31, 2**70])
def test_a_pid_that_cannot_be_has_no_values(pid: int) -> None:
    assert HostSampler().process_sample(pid) == {}


def test_a_pid_that_is_anothers_now_has_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    host_sampler = HostSampler()
    assert host_sampler.process_sample(os.getpid())
    # Born at another moment than the process that was first seen under this pid.
    monkeypatch.setattr(psutil.Process, "is_running", lambda self: False)
    assert host_sampler.process_sample(os.getpid()) == {}


def test_a_process_not_ours_to_see_has_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: psutil.Process) -> None:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "num_threads", refuse)
    assert HostSampler().process_sample(os.getpid()) == {}


def test_processes_nobody_asks_about_are_forgotten(clock: Clock) -> None:
    host_sampler = HostSampler(clock)
    host_sampler.process_sample(os.getpid())
    clock.now += host.FORGET_S + 1
    host_sampler.process_sample(os.getppid())
    assert os.getpid() not in host_sampler._watched

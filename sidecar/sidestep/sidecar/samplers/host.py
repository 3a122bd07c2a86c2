"""Measure the host and the trainers' processes from /proc; what cannot be read is absent.

Nothing here can hang: no path outside /proc and /sys is touched, and no file of a process whose
reading waits for its memory map.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

GB = 1e9
MB = 1e6
FORGET_S = 600.0  # a process that nobody has asked about for so long is not kept in mind
# What psutil lets through where /proc is cut down (containers, gVisor, hidepid) or odd.
UNREADABLE = (psutil.Error, OSError, RuntimeError, ValueError, NotImplementedError)

SYS = Path("/sys")
# Where no device shows its hardware: these certainly pass on what another one counts as well.
VIRTUAL = ("lo", "loop", "ram", "zram", "dm-", "md", "veth", "docker", "br-", "virbr", "ifb")

Counters = Mapping[str, tuple[int, int]]


@dataclass(slots=True)
class _Watched:
    """A process: psutil's handle (which knows a reused pid), and its last CPU time."""

    process: psutil.Process
    asked_at: float
    measured_at: float | None = None
    cpu_s: float = 0.0


class HostSampler:
    """The machine's CPU, memory, disks and network, and the trainers' processes.

    Rates are means since the previous call, and so absent from the first.

    Args:
        clock: monotonic seconds.
        sys: where sysfs is.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, sys: Path = SYS) -> None:
        self._clock = clock
        self._sys = sys
        self._cpu: tuple[float, float] | None = None  # busy, total
        self._disk = _Rates()
        self._network = _Rates()
        self._watched: dict[int, _Watched] = {}

    def sample(self) -> dict[str, float]:
        """Read the machine's values.

        Returns:
            `system/cpu_percent` (of all cores), `system/memory_used_gb` (what is not available to
            programs; 1e9 bytes), `system/memory_percent`, and in 1e6 bytes a second
            `system/disk_read_mb_s`, `_write_mb_s`, `system/network_sent_mb_s`, `_recv_mb_s`.
            Disks and network are the physical devices, where there are such: what passes through a
            RAID, an encrypted volume, a bridge or the loopback is not counted twice.
        """
        values: dict[str, float] = {}
        for read in (self._read_cpu, self._read_memory, self._read_disks, self._read_network):
            try:
                values.update(read())
            except UNREADABLE:
                continue
        return values

    def process_sample(self, pid: int) -> dict[str, float]:
        """Read the values of one process; {} when it is gone, a zombie, reused or not ours to see.

        Args:
            pid: as the daemon's own PID namespace counts.

        Returns:
            `system/process_cpu_percent` (100 is one core), `system/process_rss_gb`,
            `system/process_threads`. Its children (data loaders) are not counted.
        """
        now = self._clock()
        self._forget(now)
        try:
            watched = self._watched.get(pid)
            if watched is None:
                watched = self._watched[pid] = _Watched(psutil.Process(pid), now)
            watched.asked_at = now
            return _read_process(watched, now)
        except (*UNREADABLE, OverflowError):
            self._watched.pop(pid, None)
            return {}

    def _forget(self, now: float) -> None:
        old = [pid for pid, seen in self._watched.items() if now - seen.asked_at > FORGET_S]
        for pid in old:
            del self._watched[pid]

    def _read_cpu(self) -> dict[str, float]:
        times = psutil.cpu_times()
        # Guests' time is in user's and nice's already.
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        busy = total - times.idle - getattr(times, "iowait", 0.0)
        before, self._cpu = self._cpu, (busy, total)
        if before is None or total <= before[1]:
            return {}
        percent = 100 * (busy - before[0]) / (total - before[1])
        return {"system/cpu_percent": min(max(percent, 0.0), 100.0)}

    def _read_memory(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        used = memory.total - memory.available
        return {
            "system/memory_used_gb": used / GB,
            "system/memory_percent": 100 * used / memory.total if memory.total else 0.0,
        }

    def _read_disks(self) -> dict[str, float]:
        disks = psutil.disk_io_counters(perdisk=True, nowrap=False) or {}
        block = self._sys / "block"
        # Partitions are counted with their disk.
        names = _physical(block, (name for name in disks if os.path.lexists(block / name)))
        counters = {name: (disks[name].read_bytes, disks[name].write_bytes) for name in names}
        rates = self._disk.since_last(counters, self._clock())
        return _named(rates, "system/disk_read_mb_s", "system/disk_write_mb_s")

    def _read_network(self) -> dict[str, float]:
        cards = psutil.net_io_counters(pernic=True, nowrap=False) or {}
        names = _physical(self._sys / "class" / "net", cards)
        counters = {name: (cards[name].bytes_sent, cards[name].bytes_recv) for name in names}
        rates = self._network.since_last(counters, self._clock())
        return _named(rates, "system/network_sent_mb_s", "system/network_recv_mb_s")


class _Rates:
    """Two counters of several devices, as two rates over all devices."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._before: Counters = {}

    def since_last(self, counters: Counters, now: float) -> tuple[float, float] | None:
        """Units a second since the last call; None at first, and where there is no device."""
        at, before = self._at, self._before
        self._at, self._before = now, counters
        both = counters.keys() & before.keys()  # a new device counts since long before this call
        if at is None or now <= at or not both:
            return None
        # A counter that went back was reset with its device: nothing is known of that one.
        first, second = (
            sum(max(0, counters[name][side] - before[name][side]) for name in both)
            for side in (0, 1)
        )
        return first / (now - at), second / (now - at)


def _named(rates: tuple[float, float] | None, first: str, second: str) -> dict[str, float]:
    return {} if rates is None else {first: rates[0] / MB, second: rates[1] / MB}


def _physical(folder: Path, names: Iterable[str]) -> list[str]:
    """Those of the devices that have hardware, or else (containers) all but virtual ones."""
    names = list(names)
    hardware = [name for name in names if os.path.lexists(folder / name / "device")]
    return hardware or [name for name in names if not name.startswith(VIRTUAL)]


def _read_process(watched: _Watched, now: float) -> dict[str, float]:
    process = watched.process
    # psutil compares the time of birth: the pid may be another's by now.
    if not process.is_running():
        raise psutil.NoSuchProcess(process.pid)
    with process.oneshot():
        if process.status() in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}:
            raise psutil.ZombieProcess(process.pid)
        times = process.cpu_times()
        values = {
            "system/process_rss_gb": process.memory_info().rss / GB,
            "system/process_threads": float(process.num_threads()),
        }
    cpu_s = times.user + times.system
    if watched.measured_at is not None and now > watched.measured_at:
        percent = 100 * (cpu_s - watched.cpu_s) / (now - watched.measured_at)
        values["system/process_cpu_percent"] = max(percent, 0.0)
    watched.measured_at, watched.cpu_s = now, cpu_s
    return values

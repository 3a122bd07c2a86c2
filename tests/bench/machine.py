"""Says on what machine, with what versions and when something was measured."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Final

import psutil

_DISTRIBUTIONS: Final = ("torch", "tensorboard", "tensorboardX", "wandb", "pyzmq")


def describe_machine(directory: Path) -> dict[str, str]:
    """What a reader of figures must know.

    Args:
        directory: where the trials write, whose file system is named.
    """
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "date": dt.datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
        "cpu": _cpu_model(),
        "cores": f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}",
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "load": f"{load} at the start",
        "disk": _file_system(directory),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _DISTRIBUTIONS},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(directory: Path) -> str:
    mounts = {p.mountpoint: p.fstype for p in psutil.disk_partitions(all=True)}
    for folder in [directory.resolve(), *directory.resolve().parents]:
        if str(folder) in mounts:
            return mounts[str(folder)]
    return "unknown"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

"""GPUs: does NVML answer here and in the daemon, and does each trainer's device have its values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from .. import wording
from .finding import Finding, note, ok, warning, wrong
from .scene import Scene

_HINTS: Final = (
    ("libnvidia-ml", "ldconfig -p | grep libnvidia-ml"),
    ("kernel module is not loaded", "modprobe nvidia"),
    ("/dev/nvidiactl", "ls -l /dev/nvidiactl"),
    ("driver was updated", "reboot"),
    ("pip install", "pip install 'sidestep[sidecar]'"),
)
_LOST: Final = ("GPU is lost", "requires a reset", "needs reset")


def check(scene: Scene) -> Iterator[Finding]:
    """Compare what NVML says here with what the daemon's sampler says and the trainers have."""
    named = [t for t in scene.alive() if t.get("devices")]
    gpus = list(scene.gpus.get("gpus") or ())
    if "gpus" in scene.problems:
        yield wrong(
            "gpus.nvml",
            f"NVML, NVIDIA's driver library, is in trouble: {scene.problems['gpus']}. GPU values "
            "are absent as long as that lasts; training and all else go on",
            "timeout 10 nvidia-smi; dmesg | grep -i -E 'nvrm|xid' | tail",
            complaint="gpu",
        )
    else:
        yield from _nvml(scene, gpus, bool(named))
    yield from _sampler(scene, gpus)
    for trainer in scene.alive():
        yield from _mapping(trainer, gpus)


def _nvml(scene: Scene, gpus: list[Any], wanted: bool) -> Iterator[Finding]:
    error = scene.gpus.get("error")
    if gpus and not error:
        chips = [gpu for gpu in gpus if not gpu.get("parent")]
        instances = len(gpus) - len(chips)
        names = ", ".join(sorted({str(gpu["name"]) for gpu in chips}))
        text = f"NVML reads {wording.counted(len(chips), 'GPU')} ({names})"
        if instances:
            text += f", divided into {wording.counted(instances, 'MIG instance')}"
        yield ok("gpus.nvml", text)
    elif gpus:
        lost = any(text in str(error) for text in _LOST)
        yield wrong(
            "gpus.nvml",
            f"not all GPUs can be read: {error}; the others can",
            "nvidia-smi --query-gpu=index,uuid --format=csv; dmesg | grep -i xid"
            if lost
            else "nvidia-smi",
            complaint="gpu",
        )
    elif wanted or scene.gpus.get("devices") or scene.gpus.get("install"):
        yield wrong(
            "gpus.nvml",
            f"there are GPUs, and NVML cannot be used: {error or 'it sees none'}",
            _hint(str(error)),
            complaint="gpu",
        )
    else:
        yield note(
            "gpus.nvml",
            f"no GPU values, since NVML is not to be had: {error or 'it sees no GPU'}. That is "
            "well where there is no NVIDIA GPU",
            _hint(str(error)),
            complaint="gpu",
        )


def _sampler(scene: Scene, gpus: list[Any]) -> Iterator[Finding]:
    sampler: Mapping[str, Any] = (scene.status.get("host") or {}).get("gpu_sampler") or {}
    state, error = sampler.get("state"), sampler.get("error")
    if not scene.status or state in (None, "stopped"):
        return
    if state == "running" and not error:
        many = len(scene.status.get("gpus") or ())
        yield ok("gpus.sampler", f"the daemon samples {wording.counted(many, 'GPU')}")
    elif gpus and "gpus" not in scene.problems and state in ("unavailable", "waiting"):
        yield warning(
            "gpus.sampler",
            f"NVML works here, and not for the daemon: {error}. It tries again within minutes; "
            "at once with",
            "sidestep stop && sidestep start",
            complaint="gpu",
        )
    elif state in ("killed", "waiting") or (error and state != "unavailable"):
        yield warning(
            "gpus.sampler",
            f"the daemon's GPU sampler is {state} (restarted "
            f"{wording.counted(int(sampler.get('restarts') or 0), 'time')}): {error}",
            "nvidia-smi",
            complaint="gpu",
        )


def _mapping(trainer: Mapping[str, Any], gpus: list[Any]) -> Iterator[Finding]:
    from ...samplers.gpu_sample import Gpu, GpuSample, gpu_scalars

    run, pid = str(trainer.get("run")), trainer.get("pid")
    devices = [str(uuid) for uuid in trainer.get("devices") or ()]
    visible = ((trainer.get("process") or {}).get("environ") or {}).get("CUDA_VISIBLE_DEVICES")
    if devices and gpus:
        sample = GpuSample(
            0,
            tuple(
                Gpu(int(g["index"]), str(g["uuid"]), "", {"found": 1.0}, str(g["parent"]))
                for g in gpus
            ),
        )
        known = gpu_scalars(sample, devices)
        missing = [d for i, d in enumerate(devices) if f"system/gpu{i}_found" not in known]
        if missing:
            yield wrong(
                "gpus.mapping",
                f"{run}: its trainer (pid {pid}) trains on {', '.join(missing)}, which NVML does "
                "not know here: the values of that device are absent. It is in another container, "
                "or a MIG instance that was made after the daemon began",
                "nvidia-smi -L",
                complaint="gpu",
                run=run,
            )
        else:
            yield ok(
                "gpus.mapping",
                f"{run}: {wording.counted(len(devices), 'device')} of its trainer (pid {pid}) "
                "found by UUID" + (f" (CUDA_VISIBLE_DEVICES={visible})" if visible else ""),
                run=run,
            )
    elif visible is not None and visible.strip() in ("", "-1") and gpus:
        yield warning(
            "gpus.visible",
            f"{run}: CUDA_VISIBLE_DEVICES of its trainer (pid {pid}) is {visible!r}: it sees no "
            "GPU, trains on the CPU, and has no gpu_memory_allocated_gb",
            "unset CUDA_VISIBLE_DEVICES",
            complaint="gpu",
            run=run,
        )


def _hint(error: str) -> str:
    return next((command for text, command in _HINTS if text in error), "nvidia-smi")

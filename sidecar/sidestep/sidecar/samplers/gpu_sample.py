"""One sample of the machine's GPUs: as it comes from the sampler's process, and as tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

# A curve that never moves: it is in `status`, not among the tags.
CONSTANT = frozenset({"memory_total_gb"})
MIN_ABBREVIATION = 8  # hexadecimal digits of a UUID that are taken for the whole of it


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG instance of it.

    Attributes:
        index: NVML's index of the GPU (not torch's); a MIG instance has its GPU's.
        uuid: "GPU-…", of an instance "MIG-…"; "" when NVML does not tell.
        name: the product, e.g. "NVIDIA H100 80GB HBM3".
        values: what could be read, and nothing else, of `utilization` and `memory_utilization`
            (percent), `power_w`, `temperature_c`, `sm_clock_mhz`, `memory_used_gb` and
            `memory_total_gb` (1e9 bytes), `throttle_reasons` (NVML's bit mask), `pcie_tx_mb_s`,
            `pcie_rx_mb_s`, `nvlink_tx_mb_s` and `nvlink_rx_mb_s` (1e6 bytes a second).
        parent: of a MIG instance, its GPU's UUID; else "".
    """

    index: int
    uuid: str
    name: str
    values: Mapping[str, float]
    parent: str = ""


@dataclass(frozen=True, slots=True)
class GpuSample:
    """All GPUs at one moment.

    Attributes:
        time_ns: wall time in nanoseconds since the epoch.
        gpus: those that could be read.
        error: what is wrong with NVML or with one of the GPUs, or None.
    """

    time_ns: int
    gpus: tuple[Gpu, ...]
    error: str | None = None


def parse_sample(data: bytes) -> GpuSample:
    """The sample in one message of the sampler's process.

    Raises:
        ValueError: it is no such message.
    """
    try:
        message: Any = msgpack.unpackb(data, max_ext_len=0)
        gpus = tuple(
            Gpu(
                index=int(gpu["index"]),
                uuid=str(gpu["uuid"]),
                name=str(gpu["name"]),
                values={str(key): float(value) for key, value in gpu["values"].items()},
                parent=str(gpu.get("parent", "")),
            )
            for gpu in message["gpus"]
        )
        error = message["error"]
        return GpuSample(int(message["time_ns"]), gpus, None if error is None else str(error))
    except (AttributeError, KeyError, TypeError, msgpack.UnpackException) as problem:
        raise ValueError(f"not a sample of GPUs: {problem!r}") from problem


def gpu_scalars(sample: GpuSample, device_uuids: Sequence[str]) -> dict[str, float]:
    """A sample as `system/gpu{i}_*`, where i is the index that the client knows the device by.

    A client that names its devices gets these and no others, in its own order: torch's index 0
    may be NVML's 5 (CUDA_VISIBLE_DEVICES), or a MIG instance. A device that NVML does not know by
    that UUID has no tags; it is never guessed.

    A client that names none gets every GPU of the machine, by NVML's index. It trains with JAX, or
    has not touched CUDA yet, or trains on the CPU; then too the values are true, for like
    `system/cpu_percent` they speak of the machine, and an idle GPU beside a slow run is the
    very thing that its owner should see.

    Args:
        sample: what NVML said.
        device_uuids: the client's devices in torch's order, in any spelling: "GPU-" or "MIG-" and
            the UUID, the UUID alone (as torch gives it), or the beginning of one (as
            CUDA_VISIBLE_DEVICES allows). "" stands for a device whose UUID is not known.
    """
    if device_uuids:
        found = [(i, _find(sample, uuid)) for i, uuid in enumerate(device_uuids)]
    else:
        found = [(gpu.index, gpu) for gpu in sample.gpus if not gpu.parent]
    return {
        f"system/gpu{i}_{key}": value
        for i, gpu in found
        if gpu is not None
        for key, value in gpu.values.items()
        if key not in CONSTANT
    }


def _find(sample: GpuSample, uuid: str) -> Gpu | None:
    wanted = _digits(uuid)
    if len(wanted) < MIN_ABBREVIATION:
        return None
    alike = [gpu for gpu in sample.gpus if _digits(gpu.uuid).startswith(wanted)]
    exact = [gpu for gpu in alike if _digits(gpu.uuid) == wanted]
    only = exact or alike
    return only[0] if len(only) == 1 else None


def _digits(uuid: str) -> str:
    """A UUID in the one spelling that all others are compared in."""
    return uuid.strip().lower().removeprefix("mig-").removeprefix("gpu-").replace("-", "")
